package policy

import (
	"bufio"
	"bytes"
	gojson "encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// InvalidError says everything that is wrong with one policy of a file.
type InvalidError struct {
	// Name is the policy's, or says where it stands when it has none.
	Name   string
	Errors field.ErrorList
}

// Error lists every error, a line each where there are several.
func (e *InvalidError) Error() string {
	if len(e.Errors) == 1 {
		return fmt.Sprintf("policy %s: %v", e.Name, e.Errors[0])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "policy %s:", e.Name)
	for _, err := range e.Errors {
		fmt.Fprintf(&b, "\n  %v", err)
	}
	return b.String()
}

// Read compiles the policies of a file: YAML or JSON, one document or several. Read strictly,
// an unknown member is an error; else it is reported in UnknownFields. A status and a
// deployment are accepted, so that what kubectl prints can be read. Two policies of one name
// are an error, and so is a file without any.
func Read(data []byte, strict bool) ([]*Policy, error) {
	manifests, err := decodeAll(data, strict)
	if err != nil {
		return nil, err
	}
	hash := HashConfig(data)
	var out []*Policy
	for _, m := range manifests {
		p, errs := Compile(&m.policy)
		if errs = append(m.errs, errs...); len(errs) > 0 {
			return nil, &InvalidError{Name: m.name(), Errors: errs}
		}
		if slices.ContainsFunc(out, func(o *Policy) bool { return o.Name == p.Name }) {
			return nil, fmt.Errorf("metadata.name: two policies are named %q; a name is what a check asks for, so it must be unique", p.Name)
		}
		p.ConfigHash = hash
		p.UnknownFields = m.unknown
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no %s in it; want apiVersion: %s, kind: %s", Kind, v1alpha1.GroupVersion, Kind)
	}
	return out, nil
}

// decoded is a document of a configuration file.
type decoded struct {
	number  int
	policy  v1alpha1.DedupPolicy
	unknown []string
	errs    field.ErrorList
}

func (d *decoded) name() string {
	if d.policy.Name != "" {
		return d.policy.Name
	}
	return fmt.Sprintf("in document %d", d.number)
}

// decodeAll reads every document that is not empty.
func decodeAll(data []byte, strict bool) ([]*decoded, error) {
	var out []*decoded
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for number := 1; ; number++ {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("splitting the file into documents: %w", err)
		}
		d, err := decode(doc, strict)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		if d != nil {
			d.number = number
			out = append(out, d)
		}
	}
}

// decode reads one document, or returns nil for an empty one.
func decode(doc []byte, strict bool) (*decoded, error) {
	// Strict in either case: a member that stands there twice is a mistake and never a newer
	// version's member. Without a target, so that a number is not taken for a string.
	asJSON, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, fmt.Errorf("neither YAML nor JSON: %w", err)
	}
	if bytes.Equal(bytes.TrimSpace(asJSON), []byte("null")) {
		return nil, nil
	}
	var raw map[string]any
	if err := json.UnmarshalCaseSensitivePreserveInts(asJSON, &raw); err != nil {
		return nil, fmt.Errorf("want an object with apiVersion, kind, metadata and spec: %w", err)
	}
	if err := checkKind(raw); err != nil {
		return nil, err
	}
	d := &decoded{errs: quantities(raw)}
	if len(d.errs) > 0 {
		// The decoder would stop at the first of these without saying where it stands.
		return nil, &InvalidError{Name: nameOf(raw), Errors: d.errs}
	}
	strictErrs, err := json.UnmarshalStrict(asJSON, &d.policy)
	if err != nil {
		return nil, &InvalidError{Name: nameOf(raw), Errors: field.ErrorList{typeError(err)}}
	}
	for _, e := range strictErrs {
		d.unknown = append(d.unknown, pathOf(e))
	}
	slices.Sort(d.unknown)
	if strict {
		for _, path := range d.unknown {
			d.errs = append(d.errs, field.Forbidden(field.NewPath(path), "unknown field; `kubectl explain ddp.spec --recursive` lists the known ones"))
		}
	}
	zeros, err := writtenZeros(d, raw)
	if err != nil {
		return nil, err
	}
	d.errs = append(d.errs, zeros...)
	return d, nil
}

func checkKind(raw map[string]any) error {
	for _, m := range []struct{ name, want string }{
		{"apiVersion", v1alpha1.GroupVersion.String()},
		{"kind", Kind},
	} {
		if got, ok := raw[m.name]; !ok {
			return fmt.Errorf("%s: missing; want %s", m.name, m.want)
		} else if got != m.want {
			return fmt.Errorf("%s: %v; want %s", m.name, got, m.want)
		}
	}
	return nil
}

func nameOf(raw map[string]any) string {
	metadata, _ := raw["metadata"].(map[string]any)
	name, _ := metadata["name"].(string)
	return name
}

func pathOf(err error) string {
	var fieldErr json.FieldError
	if errors.As(err, &fieldErr) {
		return fieldErr.FieldPath()
	}
	return err.Error()
}

// typeError turns a decoder's error into one that names the field.
func typeError(err error) *field.Error {
	var typeErr *gojson.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		return field.TypeInvalid(field.NewPath(typeErr.Field), field.OmitValueType{}, fmt.Sprintf("a %s; want %s", typeErr.Value, typeName(typeErr)))
	}
	return field.Invalid(field.NewPath("spec"), field.OmitValueType{}, err.Error())
}

func typeName(err *gojson.UnmarshalTypeError) string {
	switch kind := err.Type.Kind().String(); {
	case strings.HasPrefix(kind, "int"):
		return "an integer of " + strings.TrimPrefix(kind, "int") + " bits"
	case kind == "string":
		return "a string (in quotes, if it looks like a number)"
	case kind == "bool":
		return "true or false"
	case kind == "slice":
		return "a list"
	default:
		return "an object"
	}
}
