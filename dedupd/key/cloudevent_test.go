package key

import (
	"errors"
	"strings"
	"testing"
)

const cloudEventType = "application/cloudevents+json"

func TestTheSameCloudEventHasTheSameKeyEverywhere(t *testing.T) {
	// source "/a b/€", id `Q"1%` in every mode and encoding.
	const want = "=2Fa=20b=2F=E2=82=AC:Q=221=25"
	for name, m := range map[string]Message{
		"HTTP":                          with(map[string]string{"ce-source": "/a%20b/%E2%82%AC", "ce-id": "Q%221%25"}, "x"),
		"HTTP, lower-case digits":       with(map[string]string{"ce-source": "/a%20b/%e2%82%ac", "ce-id": "Q%221%25"}, "x"),
		"HTTP, encoded beyond need":     with(map[string]string{"ce-source": "%2Fa%20b%2F%E2%82%AC", "ce-id": "%51%22%31%25"}, "x"),
		"HTTP, quoted, as it once was":  with(map[string]string{"ce-source": `"/a b/%E2%82%AC"`, "ce-id": `"Q\"1%25"`}, "x"),
		"HTTP, unencoded":               with(map[string]string{"ce-source": "/a b/€", "ce-id": `Q"1%`}, "x"),
		"Kafka":                         with(map[string]string{"ce_source": "/a b/€", "ce_id": `Q"1%`}, "x"),
		"AMQP":                          with(map[string]string{"cloudevents:source": "/a b/€", "cloudevents:id": `Q"1%`}, "x"),
		"AMQP, underscore":              with(map[string]string{"cloudevents_source": "/a b/€", "cloudevents_id": `Q"1%`}, "x"),
		"binary, with a type of data":   with(map[string]string{"ce_source": "/a b/€", "ce_id": `Q"1%`, "content-type": "application/json"}, `{"id":"data","source":"data"}`),
		"structured":                    with(map[string]string{"content-type": cloudEventType}, `{"specversion":"1.0","source":"/a b/€","id":"Q\"1%","data":{"id":"2"}}`),
		"structured, escaped":           with(map[string]string{"content-type": cloudEventType + "; charset=utf-8"}, `{"i\u0064":"\u0051\u00221%","source":"\/a b\/\u20ac"}`),
		"structured, in upper case":     with(map[string]string{"content-type": "Application/CloudEvents+JSON ;charset=UTF-8"}, `{"source":"/a b/€","id":"Q\"1%"}`),
		"structured, headers beside it": with(map[string]string{"content-type": cloudEventType, "ce-id": "other"}, `{"source":"/a b/€","id":"Q\"1%"}`),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := CloudEvent().AppendKey([]byte("c:"), m)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != "c:"+want {
				t.Errorf("got %s, want c:%s", got, want)
			}
		})
	}
}

func TestWhatIsNoCloudEvent(t *testing.T) {
	for name, tc := range map[string]struct {
		message   Message
		malformed bool
		want      string
	}{
		"no attributes":              {body("{}"), false, "a CloudEvent (headers ce-source and ce-id"},
		"no source":                  {with(map[string]string{"ce-id": "1"}, ""), false, `header "ce-source" is absent`},
		"no id":                      {with(map[string]string{"ce_source": "/s"}, ""), false, `header "ce_id" is absent`},
		"an empty id":                {with(map[string]string{"cloudevents:source": "/s", "cloudevents:id": ""}, ""), false, `header "cloudevents:id" is empty`},
		"a quoted empty id":          {with(map[string]string{"ce-source": "/s", "ce-id": `""`}, ""), false, `header "ce-id" is empty`},
		"source and id of two modes": {with(map[string]string{"ce-source": "/s", "ce_id": "1"}, ""), false, `header "ce-id" is absent`},
		"not UTF-8 when decoded":     {with(map[string]string{"ce-source": "/s", "ce-id": "%C0%A0"}, ""), true, `header "ce-id": "\xc0\xa0" is not UTF-8 (after percent-decoding)`},
		"not UTF-8":                  {with(map[string]string{"ce_source": "/\xff", "ce_id": "1"}, ""), true, `header "ce_source": "/\xff" is not UTF-8`},
		"structured without source":  {with(map[string]string{"content-type": cloudEventType}, `{"id":"1"}`), false, "path $.source is absent"},
		"structured with a null id":  {with(map[string]string{"content-type": cloudEventType}, `{"source":"/s","id":null}`), false, "path $.id is null"},
		"structured, empty source":   {with(map[string]string{"content-type": cloudEventType}, `{"source":"","id":"1"}`), false, "path $.source is empty"},
		"structured, a number id":    {with(map[string]string{"content-type": cloudEventType}, `{"source":"/s","id":12}`), true, "body at offset 20: $.id is a number; CloudEvents wants a string"},
		"structured, no JSON":        {with(map[string]string{"content-type": cloudEventType}, "hello"), true, "body at offset 0: want a JSON value"},
		"structured, an array":       {with(map[string]string{"content-type": cloudEventType}, `[{"source":"/s","id":"1"}]`), false, "path $.source is absent"},
		"a batch":                    {with(map[string]string{"content-type": "application/cloudevents-batch+json"}, "[]"), true, `header "content-type": "application/cloudevents-batch+json" holds several events`},
		"another format":             {with(map[string]string{"content-type": "application/cloudevents+avro"}, ""), true, `header "content-type": of the CloudEvents formats only application/cloudevents+json can be read`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := CloudEvent().AppendKey([]byte("c:"), tc.message)
			var missing *MissingError
			var malformed *MalformedError
			if tc.malformed != errors.As(err, &malformed) || tc.malformed == errors.As(err, &missing) {
				t.Fatalf("got %#v, want malformed: %v", err, tc.malformed)
			}
			if !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got %v, want %s…", err, tc.want)
			}
			if string(got) != "c:" {
				t.Errorf("dst came back as %s", got)
			}
		})
	}
}

func TestALongHeaderIsNotRepeatedInItsError(t *testing.T) {
	m := with(map[string]string{"ce_source": strings.Repeat("\xff", 1<<20), "ce_id": "1"}, "")
	_, err := CloudEvent().AppendKey(nil, m)
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

func FuzzCloudEventHeaders(f *testing.F) {
	f.Add("/s", "1")
	f.Add(`"a\"b"`, "%41%zz%")
	f.Add(`"`, `"\`)
	f.Fuzz(func(t *testing.T, source, id string) {
		m := Message{Headers: MapHeaders{"ce-source": source, "ce-id": id}}
		key, err := CloudEvent().AppendKey(nil, m)
		if err == nil && strings.Count(string(key), ":") != 1 {
			t.Errorf("%q, %q: key %s has not two parts", source, id, key)
		}
	})
}
