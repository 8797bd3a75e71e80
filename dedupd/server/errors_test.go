package server

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dedupd/dedup-operator/dedupd/engine"
)

// Every code that the sources of engine and server declare has its line in the table, and the
// table has no line more.
func TestEveryCodeHasAStatus(t *testing.T) {
	declared := map[engine.Code]bool{}
	for _, dir := range []string{"../engine", "."} {
		for _, code := range declaredCodes(t, dir) {
			declared[code] = true
		}
	}
	if len(declared) < len(engine.Codes()) {
		t.Fatalf("the sources declare %d codes, engine.Codes() lists %d", len(declared), len(engine.Codes()))
	}
	for _, code := range engine.Codes() {
		if !declared[code] {
			t.Errorf("%s is not found in the sources: does this test still read them?", code)
		}
	}
	for code := range declared {
		a, ok := answers[code]
		if !ok {
			t.Errorf("%s has no status", code)
			continue
		}
		if a.http < 400 || a.http > 599 || http.StatusText(a.http) == "" {
			t.Errorf("%s: HTTP status %d", code, a.http)
		}
		if a.grpc == codes.OK || a.grpc == codes.Unknown {
			t.Errorf("%s: gRPC code %s", code, a.grpc)
		}
	}
	for code := range answers {
		if !declared[code] {
			t.Errorf("%s is in the table and declared nowhere", code)
		}
	}
}

// declaredCodes are the values of the constants of type Code in a package's sources.
func declaredCodes(t *testing.T, dir string) []engine.Code {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var found []engine.Code
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(source, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || !isCode(spec.Type) {
				return true
			}
			for _, value := range spec.Values {
				text, err := strconv.Unquote(value.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, engine.Code(text))
			}
			return true
		})
	}
	return found
}

func isCode(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name == "Code"
	case *ast.SelectorExpr:
		return e.Sel.Name == "Code"
	}
	return false
}

// No error may ever look like a decision, and a bug of ours tells the caller nothing of our insides.
func TestForeignErrorsAreInternal(t *testing.T) {
	for name, err := range map[string]error{
		"an error of no kind":        errors.New("secret path /etc/x"),
		"an error of a code unknown": &engine.Error{Code: "NEW", Message: "secret path /etc/x"},
	} {
		t.Run(name, func(t *testing.T) {
			e := asError(err)
			if e.Code != CodeInternal || strings.Contains(e.Message, "secret") {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestGRPCErrorCarriesItsDetails(t *testing.T) {
	err := grpcError(&engine.Error{Code: engine.Unavailable, Message: "down", Field: "f", RetryAfter: 1500 * time.Millisecond})
	st := status.Convert(err)
	if st.Code() != codes.Unavailable || st.Message() != "down" || len(st.Details()) != 2 {
		t.Fatalf("got %v %v", st, st.Details())
	}
	info := st.Details()[0].(*errdetails.ErrorInfo)
	if info.GetReason() != "UNAVAILABLE" || info.GetDomain() != "dedupd.io" || info.GetMetadata()["field"] != "f" {
		t.Errorf("got %v", info)
	}
	if retry := st.Details()[1].(*errdetails.RetryInfo); retry.GetRetryDelay().AsDuration() != 1500*time.Millisecond {
		t.Errorf("got %v", retry)
	}
}
