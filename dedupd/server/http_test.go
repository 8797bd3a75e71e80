package server

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestHTTPDecisions(t *testing.T) {
	f := start(t)
	me := []string{"Dedup-Consumer: billing"}
	ids := "/v1/policies/ids/check"

	first := f.do("POST", ids, "x", append(me, "Message-Id: 1")...)
	if first.status != 200 || first.field("decision") != "FRESH" || first.header.Get("Dedup-Decision") != "FRESH" {
		t.Fatalf("first: %+v", first)
	}
	if first.field("key") != "billing:1" {
		t.Errorf("key %q", first.field("key"))
	}
	if first.field("token") != "" {
		t.Errorf("a token in mode Mark: %s", first.text)
	}
	again := f.do("POST", ids, "x", append(me, "message-id: 1")...)
	if again.field("decision") != "DUPLICATE" || again.header.Get("Dedup-Decision") != "DUPLICATE" {
		t.Fatalf("again: %+v", again)
	}
	if seen, err := time.Parse(time.RFC3339Nano, again.field("firstSeen")); err != nil || time.Since(seen) > time.Minute {
		t.Errorf("firstSeen: %v %v", seen, err)
	}
	if other := f.do("POST", ids, "x", "Dedup-Consumer: audit", "Message-Id: 1"); other.field("decision") != "FRESH" {
		t.Errorf("another consumer: %s", other.text)
	}
	if shadow := f.do("POST", "/v1/policies/watched/check", "", append(me, "Message-Id: 1")...); shadow.field("shadow") != "FRESH" {
		t.Errorf("shadow: %s", shadow.text)
	}
	shadow := f.do("POST", "/v1/policies/watched/check", "", append(me, "Message-Id: 1")...)
	if shadow.field("decision") != "FRESH" || shadow.field("shadow") != "DUPLICATE" {
		t.Errorf("shadow: %s", shadow.text)
	}
}

func TestHTTPClaimLife(t *testing.T) {
	f := start(t)
	check := func() reply {
		return f.do("POST", "/v1/policies/orders/check", `{"user_id": 17, "event_type": "signup"}`, "Dedup-Consumer: billing")
	}
	settle := func(verb, key, token string) reply {
		return f.do("POST", "/v1/policies/orders/"+verb, fmt.Sprintf(`{"key":%q,"token":%q}`, key, token))
	}
	first := check()
	key, token := first.field("key"), first.field("token")
	if first.field("decision") != "FRESH" || token == "" || first.fields["fence"] != 1.0 || first.fields["leaseSeconds"] != 30.0 {
		t.Fatalf("first: %s", first.text)
	}
	if key != "billing:~17:signup" {
		t.Errorf("key %q", key)
	}
	held := check()
	if held.field("decision") != "IN_PROGRESS" || held.header.Get("Retry-After") != "30" {
		t.Fatalf("held: %s %v", held.text, held.header)
	}
	if left, _ := held.fields["retryAfterSeconds"].(float64); left <= 29 || left > 30 {
		t.Errorf("retryAfterSeconds %v", left)
	}
	if r := settle("renew", key, token); r.status != 200 || r.field("state") != "CLAIMED" || r.fields["leaseSeconds"] != 30.0 {
		t.Errorf("renew: %s", r.text)
	}
	if r := settle("release", key, token); r.status != 200 || r.field("state") != "RELEASED" {
		t.Errorf("release: %s", r.text)
	}
	if r := settle("complete", key, token); r.status != 409 || r.field("code") != "STALE_TOKEN" || r.field("field") != "token" {
		t.Errorf("complete after release: %s", r.text)
	}
	second := check()
	if second.field("decision") != "FRESH" || second.fields["fence"] != 2.0 {
		t.Fatalf("second: %s", second.text)
	}
	for range 2 { // the second time as after a lost answer
		if r := settle("complete", key, second.field("token")); r.status != 200 || r.field("state") != "COMPLETED" {
			t.Errorf("complete: %s", r.text)
		}
	}
	if r := check(); r.field("decision") != "DUPLICATE" {
		t.Errorf("after complete: %s", r.text)
	}
	if r := settle("complete", key, "none"); r.status != 200 || r.field("state") != "NONE" {
		t.Errorf("complete none: %s", r.text)
	}

	path := "/v1/policies/orders/keys/" + key
	found := f.do("GET", path, "")
	if found.status != 200 || found.field("state") != "COMPLETED" || found.field("key") != key || found.fields["fence"] != 2.0 {
		t.Errorf("lookup: %s", found.text)
	}
	if left, _ := found.fields["remainingSeconds"].(float64); left <= 3590 || left > 3600 {
		t.Errorf("lookup: %s", found.text)
	}
	if r := f.do("DELETE", path, ""); r.status != 200 || r.fields["existed"] != true {
		t.Errorf("forget: %s", r.text)
	}
	if r := f.do("DELETE", path, ""); r.status != 200 || r.fields["existed"] != false {
		t.Errorf("forget again: %s", r.text)
	}
	if r := f.do("GET", path, ""); r.status != 404 || r.field("code") != "NOT_FOUND" {
		t.Errorf("lookup after forget: %s", r.text)
	}
	if r := check(); r.field("decision") != "FRESH" {
		t.Errorf("after forget: %s", r.text)
	}
}

// Keys that look like paths, patterns or escapes must come back from their URL as they are.
func TestHTTPKeysSurviveTheirURL(t *testing.T) {
	f := start(t)
	for _, id := range []string{"a/b", "..", ".", "a//b", "a?b#c", "%2F", "ä", "a b", "x:y", "~", "=", "+", "a;b"} {
		first := f.do("POST", "/v1/policies/ids/check", "", "Dedup-Consumer: ../.", "Message-Id: "+id)
		if first.status != 200 {
			t.Fatalf("%q: %s", id, first.text)
		}
		found := f.do("GET", "/v1/policies/ids/keys/"+first.field("key"), "")
		if found.status != 200 || found.field("key") != first.field("key") {
			t.Errorf("%q: key %q: %d %s", id, first.field("key"), found.status, found.text)
		}
	}
}

func TestHTTPBatch(t *testing.T) {
	f := start(t)
	r := f.do("POST", "/v1/policies/orders/check:batch", `{"consumer": "billing", "messages": [
		{"body": {"user_id": 1, "event_type": "a"}, "attempt": "x"},
		{"body": {"event_type": "a"}},
		{"bodyText": "{\"user_id\": 1, \"event_type\": \"a\"}"},
		{"bodyBase64": "eyJ1c2VyX2lkIjogMiwgImV2ZW50X3R5cGUiOiAiYSJ9", "headers": {"any": "thing"}},
		{"body": {"user_id": 1, "event_type": "a"}, "attempt": "x"}
	]}`)
	if r.status != 200 {
		t.Fatal(r.text)
	}
	var got []string
	for _, a := range r.fields["answers"].([]any) {
		answer := a.(map[string]any)
		if e, ok := answer["error"].(map[string]any); ok {
			got = append(got, fmt.Sprint(e["code"]))
			continue
		}
		got = append(got, fmt.Sprint(answer["decision"]))
	}
	// The last repeats the first's attempt, so it is the same one.
	want := "[FRESH KEY_MISSING IN_PROGRESS FRESH FRESH]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if r := f.do("POST", "/v1/policies/orders/check:batch", `{"consumer": "billing", "messages": []}`); r.text != "{\"answers\":[]}\n" {
		t.Errorf("an empty batch: %s", r.text)
	}
}

func TestHTTPBadInput(t *testing.T) {
	f := start(t, func(o *options) {
		o.limits.MaxBody, o.limits.MaxBatch, o.limits.MaxBatchBytes = 1000, 3, 2000
	})
	check, batch, complete := "/v1/policies/orders/check", "/v1/policies/orders/check:batch", "/v1/policies/orders/complete"
	me := "Dedup-Consumer: billing"
	valid := `{"body":{"user_id":1,"event_type":"a"}}`
	tests := map[string]struct {
		method, path, body string
		headers            []string
		status             int
		code, field        string
		says               string
	}{
		"malformed JSON where the key is in it": {
			path: check, body: `{"user_id": 17,, }`, headers: []string{me},
			status: 400, code: "INVALID_MESSAGE", says: "body at offset 15",
		},
		"an empty body where the key is in it": {
			path: check, headers: []string{me}, status: 400, code: "INVALID_MESSAGE",
		},
		"a missing key field": {
			path: check, body: `{"user_id": 17}`, headers: []string{me},
			status: 400, code: "KEY_MISSING", field: "path $.event_type", says: "$.event_type is absent",
		},
		"a null key field": {
			path: check, body: `{"user_id": null, "event_type": "a"}`, headers: []string{me},
			status: 400, code: "KEY_MISSING", field: "path $.user_id", says: "null",
		},
		"a missing header": {
			path: "/v1/policies/ids/check", headers: []string{me},
			status: 400, code: "KEY_MISSING", field: `header "message-id"`,
		},
		"no consumer": {
			path: check, body: `{"user_id": 17, "event_type": "a"}`,
			status: 400, code: "INVALID_ARGUMENT", field: "consumer",
		},
		"a consumer that is too long": {
			path: check, body: `{"user_id": 17, "event_type": "a"}`, headers: []string{"Dedup-Consumer: " + strings.Repeat("x", 254)},
			status: 400, code: "INVALID_ARGUMENT", field: "consumer", says: "253",
		},
		"bytes that are not UTF-8": {
			path: check, body: "{\"user_id\": \"\xff\", \"event_type\": \"a\"}", headers: []string{me},
			status: 400, code: "INVALID_MESSAGE", says: "UTF-8",
		},
		"an unknown policy": {
			path: "/v1/policies/nope/check", body: "x", headers: []string{me},
			status: 404, code: "NOT_FOUND", field: "policy", says: `no policy "nope" here; there is ["content" "ids" "orders" "watched"]`,
		},
		"a body over the limit": {
			path: check, body: strings.Repeat("x", 1001), headers: []string{me},
			status: 413, code: "TOO_LARGE", field: "body", says: "1000 bytes (--max-body)",
		},
		"a batch over its limit in bytes": {
			path: batch, body: strings.Repeat(" ", 2001),
			status: 413, code: "TOO_LARGE", field: "body", says: "--max-batch-bytes",
		},
		"a batch over its limit in messages": {
			path: batch, body: `{"messages":[` + strings.Repeat(valid+",", 3) + valid + `]}`,
			status: 413, code: "TOO_LARGE", field: "messages", says: "more than 3",
		},
		"a batch that is malformed": {
			path: batch, body: `{"messages":[}`, status: 400, code: "INVALID_ARGUMENT", says: "at offset 13",
		},
		"a batch with text behind it": {
			path: batch, body: `{"messages":[]} x`, status: 400, code: "INVALID_ARGUMENT", says: "at offset 16",
		},
		"a batch that is no object": {
			path: batch, body: `[]`, status: 400, code: "INVALID_ARGUMENT", field: "body", says: "want an object, got an array",
		},
		"a batch that is empty": {
			path: batch, body: ``, status: 400, code: "INVALID_ARGUMENT", says: "at offset 0",
		},
		"a batch without messages": {
			path: batch, body: `{"consumer":"a"}`, status: 400, code: "INVALID_ARGUMENT", field: "messages", says: "absent",
		},
		"a batch with an unknown field": {
			path: batch, body: `{"consumers":"a","messages":[]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "consumers", says: "unknown field; known here: consumer, messages",
		},
		"a batch with a field in another case": {
			path: batch, body: `{"Messages":[]}`, status: 400, code: "INVALID_ARGUMENT", field: "Messages", says: "unknown field",
		},
		"a message with an unknown field": {
			path: batch, body: `{"messages":[{"body":1,"id":2}]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "messages[0].id", says: "unknown field",
		},
		"a message that is no object": {
			path: batch, body: `{"messages":[{"body":1},"x"]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "messages[1]", says: "want an object, got a string",
		},
		"a message with two bodies": {
			path: batch, body: `{"messages":[{"body":1,"bodyText":"1"}]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "messages[0]", says: "one of body, bodyText and bodyBase64",
		},
		"a message with one field twice": {
			path: batch, body: `{"messages":[{"attempt":"a","attempt":"b"}]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "messages[0].attempt", says: "twice",
		},
		"a header that is a number": {
			path: batch, body: `{"messages":[{"headers":{"message-id":7}}]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "messages[0].headers.message-id", says: "want a string, got a number",
		},
		"two headers that differ by case only": {
			path: batch, body: `{"messages":[{"headers":{"A":"1","a":"2"}}]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "messages[0].headers",
		},
		"a header with half a surrogate pair": {
			path: batch, body: `{"messages":[{"headers":{"message-id":"\ud800"}}]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "messages[0].headers.message-id", says: "surrogate",
		},
		"a batch that is not UTF-8": {
			path: batch, body: "{\"messages\":[{\"headers\":{\"message-id\":\"\xff\"}}]}",
			status: 400, code: "INVALID_ARGUMENT", says: "at offset 39: not UTF-8",
		},
		"a body that is not base64": {
			path: batch, body: `{"messages":[{"bodyBase64":"a"}]}`,
			status: 400, code: "INVALID_ARGUMENT", field: "messages[0].bodyBase64", says: "base64",
		},
		"a token that is none": {
			path: complete, body: `{"key":"billing:~17:signup","token":"hello"}`,
			status: 400, code: "INVALID_ARGUMENT", field: "token",
		},
		"a settlement without a key": {
			path: complete, body: `{"token":"none2"}`, status: 400, code: "INVALID_ARGUMENT", field: "key",
		},
		"a settlement with an unknown field": {
			path: complete, body: `{"key":"a","token":"b","ttl":3}`,
			status: 400, code: "INVALID_ARGUMENT", field: "ttl", says: "unknown field; known here: key, token",
		},
		"a settlement of a claim that nobody has": {
			path: complete, body: `{"key":"billing:~17:signup","token":"` + strings.Repeat("A", 32) + `"}`,
			status: 409, code: "STALE_TOKEN", field: "token",
		},
		"an empty key": {
			method: "GET", path: "/v1/policies/orders/keys/", status: 400, code: "INVALID_ARGUMENT", field: "key",
		},
		"another method": {
			method: "GET", path: check, status: 405, code: "METHOD_NOT_ALLOWED", says: "GET is not for this path; POST is",
		},
		"another path": {
			path: "/v2/check", status: 404, code: "NOT_FOUND", says: "no such path: /v2/check",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			method := test.method
			if method == "" {
				method = "POST"
			}
			r := f.do(method, test.path, test.body, test.headers...)
			if r.status != test.status || r.field("code") != test.code || !strings.Contains(r.field("detail"), test.says) {
				t.Errorf("got %d %s\nwant %d %s with %q", r.status, r.text, test.status, test.code, test.says)
			}
			if test.field != "" && r.field("field") != test.field {
				t.Errorf("field %q, want %q", r.field("field"), test.field)
			}
			if got := r.header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("Content-Type %q", got)
			}
			if r.field("type") != "about:blank" || r.field("title") != http.StatusText(test.status) || r.fields["status"] != float64(test.status) {
				t.Errorf("not an RFC 9457 problem: %s", r.text)
			}
		})
	}
}

// One message of a batch that is too large does not take the others with it.
func TestHTTPBatchWithOneLargeMessage(t *testing.T) {
	f := start(t, func(o *options) { o.limits.MaxBody = 100 })
	r := f.do("POST", "/v1/policies/content/check:batch",
		`{"messages":[{"bodyText":"a"},{"bodyText":"`+strings.Repeat("x", 101)+`"},{"bodyText":"b"}]}`)
	answers, _ := r.fields["answers"].([]any)
	if len(answers) != 3 || !strings.Contains(fmt.Sprint(answers[1]), "TOO_LARGE") ||
		!strings.Contains(fmt.Sprint(answers[0]), "FRESH") || !strings.Contains(fmt.Sprint(answers[2]), "FRESH") {
		t.Errorf("%s", r.text)
	}
}
