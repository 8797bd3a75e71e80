package controllers

import (
	"encoding/json"
	"testing"
)

func TestCovers(t *testing.T) {
	for name, test := range map[string]struct {
		fields, value string
		want          bool
	}{
		"a scalar of one's own":                 {`{"f:spec":{"f:replicas":{}}}`, `{"spec":{"replicas":3}}`, true},
		"a scalar that another took":            {`{"f:spec":{"f:selector":{}}}`, `{"spec":{"replicas":3}}`, false},
		"nothing under a path":                  {`{"f:metadata":{}}`, `{"spec":{"replicas":3}}`, false},
		"a map that is owned as a whole":        {`{"f:selector":{}}`, `{"selector":{"a":"b"}}`, true},
		"a list that is owned as a whole":       {`{"f:args":{}}`, `{"args":["a","b"]}`, true},
		"an item by its key":                    {`{"f:c":{"k:{\"name\":\"a\"}":{".":{},"f:name":{},"f:image":{}}}}`, `{"c":[{"name":"a","image":"x"}]}`, true},
		"an item of which another took a field": {`{"f:c":{"k:{\"name\":\"a\"}":{".":{},"f:name":{}}}}`, `{"c":[{"name":"a","image":"x"}]}`, false},
		"an item that is gone":                  {`{"f:c":{"k:{\"name\":\"b\"}":{".":{},"f:name":{}}}}`, `{"c":[{"name":"a"}]}`, false},
		"an item with two keys, one by default": {`{"f:p":{"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:port":{}}}}`, `{"p":[{"port":80}]}`, true},
		"an item with two keys, one different":  {`{"f:p":{"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:port":{},"f:protocol":{}}}}`, `{"p":[{"port":80,"protocol":"UDP"}]}`, false},
		"a member of a set":                     {`{"f:finalizers":{".":{},"v:\"a\"":{}}}`, `{"finalizers":["a"]}`, true},
		"a member that a set has lost":          {`{"f:finalizers":{".":{},"v:\"a\"":{}}}`, `{"finalizers":["a","b"]}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			var fields map[string]any
			var value any
			for text, into := range map[string]any{test.fields: &fields, test.value: &value} {
				if err := json.Unmarshal([]byte(text), into); err != nil {
					t.Fatal(err)
				}
			}
			if got := covers(fields, value); got != test.want {
				t.Errorf("covers(%s, %s) is %v, want %v", test.fields, test.value, got, test.want)
			}
		})
	}
}
