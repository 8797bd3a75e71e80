package key

import (
	"strings"
	"testing"
)

func BenchmarkAppendKey(b *testing.B) {
	h := map[string]string{"message-id": "6f1c2b9e-8a53-4f0e-9d6c-2f7d3b1a9c55", "tenant": "t1", "ce-source": "/orders", "ce-id": "A-1"}
	const text = `{"id":"6f1c2b9e-8a53-4f0e-9d6c-2f7d3b1a9c55","user_id":123456,"event_type":"order.created","sent_at":"2024-05-01T10:00:00Z","total":19.99,"items":[{"sku":"AB-1","quantity":2},{"sku":"CD-2","quantity":1}]}`
	m := with(h, text)
	event := with(map[string]string{"content-type": "application/cloudevents+json"}, `{"specversion":"1.0","source":"/orders","id":"A-1","type":"order.created","data":`+text+`}`)
	for _, bc := range []struct {
		name     string
		strategy Strategy
		message  Message
	}{
		{"MessageID/header", MessageID(header("message-id")), m},
		{"MessageID/path", MessageID(path(b, "$.id")), m},
		{"CloudEvent/binary", CloudEvent(), m},
		{"CloudEvent/structured", CloudEvent(), event},
		{"Composite", Composite([]Source{path(b, "$.user_id"), path(b, "$.event_type"), header("tenant")}), m},
		{"ContentHash/None", ContentHash(ContentOptions{}), m},
		{"ContentHash/JSON", ContentHash(ContentOptions{Canonical: true}), m},
		{"ContentHash/exclude", ContentHash(ContentOptions{Exclude: paths(b, "$.sent_at")}), m},
		{"ContentHash/include", ContentHash(ContentOptions{Include: paths(b, "$.user_id", "$.items")}), m},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(bc.message.Body)))
			dst := make([]byte, 0, MaxReadable)
			for b.Loop() {
				if _, err := bc.strategy.AppendKey(dst, bc.message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParseLarge(b *testing.B) {
	text := []byte("[" + strings.Repeat(`{"sku":"AB-1","quantity":2,"name":"J\u00f6rg"},`, 20_000) + "0]")
	s := ContentHash(ContentOptions{Canonical: true})
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	dst := make([]byte, 0, MaxReadable)
	for b.Loop() {
		if _, err := s.AppendKey(dst, Message{Body: text}); err != nil {
			b.Fatal(err)
		}
	}
}
