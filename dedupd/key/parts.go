package key

import (
	"strconv"
	"strings"
)

// Source is where a part of a key stands. Exactly one of the two is set.
type Source struct {
	Header string // a header's name, compared without case
	Path   *Path  // a place in a JSON body
}

// parts is the strategy that takes the values at some sources, in order.
type parts struct {
	sources   []Source // names in lower case
	readsBody bool
}

// MessageID returns the strategy that takes the identifier the producer gave the message.
func MessageID(s Source) Strategy { return Composite([]Source{s}) }

// Composite returns the strategy that takes several values, which identify a message together.
func Composite(sources []Source) Strategy {
	p := &parts{sources: make([]Source, len(sources))}
	for i, s := range sources {
		p.sources[i] = Source{Header: strings.ToLower(s.Header), Path: s.Path}
		p.readsBody = p.readsBody || s.Path != nil
	}
	return p
}

// AppendKey implements Strategy.
func (p *parts) AppendKey(dst []byte, m Message) ([]byte, error) {
	var d *document
	if p.readsBody {
		var err error
		if d, err = parse(m.Body); err != nil {
			return dst, err
		}
		defer d.release()
	}
	key := dst
	for i := range p.sources {
		if i > 0 {
			key = append(key, separator)
		}
		var err error
		if s := &p.sources[i]; s.Path != nil {
			key, err = d.appendPart(key, s.Path)
		} else {
			key, err = appendHeader(key, m, s.Header)
		}
		if err != nil {
			return dst, err
		}
	}
	return key, nil
}

// appendHeader appends the escaped value of a header.
func appendHeader(dst []byte, m Message, lowerName string) ([]byte, error) {
	value, ok := m.header(lowerName)
	if value == "" {
		return dst, missingHeader(lowerName, ok)
	}
	return appendEscaped(dst, value), nil
}

func missingHeader(lowerName string, present bool) error {
	how := absent
	if present {
		how = empty
	}
	return &MissingError{What: "header " + strconv.Quote(lowerName), How: how}
}

// appendPart appends the value that a path selects as a part of a key.
func (d *document) appendPart(dst []byte, p *Path) ([]byte, error) {
	at, ok := d.find(p)
	switch {
	case !ok:
		return dst, missingPath(p, absent)
	case d.nodes[at].kind == kindNull:
		return dst, missingPath(p, null)
	case d.nodes[at].kind == kindString:
		s := d.decoded(at)
		if len(s) == 0 {
			return dst, missingPath(p, empty)
		}
		return appendEscaped(dst, s), nil
	}
	d.scratch = d.scratch[:0]
	var err error
	if d.out, err = d.appendCanonical(d.out[:0], at); err != nil {
		return dst, err
	}
	return appendEscaped(append(dst, typed), d.out), nil
}

func missingPath(p *Path, how string) error {
	return &MissingError{What: "path " + p.String(), How: how}
}
