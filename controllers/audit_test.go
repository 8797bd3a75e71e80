package controllers_test

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"os"
	"testing"
	"time"
)

// auditLog is where the API server of this package's tests writes down who writes what.
var auditLog string

// audited are the writes of a user agent, as the API server saw them, in the log's part from an
// offset on, with where the log ends now. It holds whatever the client's code says of itself.
func audited(t *testing.T, userAgent string, offset int64) (writes []string, end int64) {
	t.Helper()
	f, err := os.Open(auditLog)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	data, err := io.ReadAll(io.NewSectionReader(f, offset, math.MaxInt64-offset))
	must(t, err)
	data = data[:bytes.LastIndexByte(data, '\n')+1] // the last line may still be written
	for line := range bytes.Lines(data) {
		var event struct{ Verb, RequestURI, UserAgent string }
		must(t, json.Unmarshal(line, &event))
		if event.UserAgent == userAgent {
			writes = append(writes, event.Verb+" "+event.RequestURI)
		}
	}
	return writes, offset + int64(len(data))
}

// quiet waits until the API server has seen no write of the worlds' managers for a while, and returns where
// its log ends. Events are written behind, and so is the log.
func quiet(t *testing.T, worlds ...*world) (end int64) {
	t.Helper()
	last := time.Now()
	for deadline := last.Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		from := end
		for i, w := range worlds {
			writes, to := audited(t, w.userAgent(), from)
			if len(writes) > 0 {
				last = time.Now()
			}
			if i == 0 || to < end {
				end = to
			}
		}
		if time.Since(last) >= 3*time.Second {
			return end
		}
	}
	t.Fatal("the managers write on and on")
	return 0
}
