package controllers_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// auditLog is where the API server of this package's tests writes down who writes what.
var auditLog string

// auditPolicy has the API server log every write, once it is answered.
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, verbs: [create, update, patch, delete, deletecollection]}
  - {level: None}
`

// audit makes the API server log writes in the folder.
func audit(env *envtest.Environment, folder string) error {
	policy := filepath.Join(folder, "policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	auditLog = filepath.Join(folder, "audit.log")
	env.ControlPlane.GetAPIServer().Configure().
		Append("audit-policy-file", policy).
		Append("audit-log-path", auditLog)
	return nil
}

// audited are the writes of a user agent, as the API server saw them, in the log's part from an
// offset on, with where the log ends now. It holds whatever the client's code says of itself.
func audited(t *testing.T, userAgent string, offset int64) (writes []string, end int64) {
	t.Helper()
	f, err := os.Open(auditLog)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	data := make([]byte, 64<<20)
	n, err := f.ReadAt(data, offset)
	if n == len(data) {
		t.Fatalf("the audit log grew by more than %d bytes (%v)", n, err)
	}
	data = data[:bytes.LastIndexByte(data[:n], '\n')+1] // the last line may still be written
	for line := range bytes.Lines(data) {
		var event struct{ Verb, RequestURI, UserAgent string }
		must(t, json.Unmarshal(line, &event))
		if event.UserAgent == userAgent {
			writes = append(writes, event.Verb+" "+event.RequestURI)
		}
	}
	return writes, offset + int64(len(data))
}
