package key

import (
	"bytes"
	"hash/maphash"
	"math/bits"
	"runtime"
	"slices"
	"sync"
)

type kind uint8

const (
	kindNull kind = iota
	kindFalse
	kindTrue
	kindNumber
	kindString
	kindArray
	kindObject
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a boolean", "a number", "a string", "an array", "an object"}[k]
}

// node is a value in a document, or the name of a member, which is a string before its value.
// The nodes of a container's content follow it.
type node struct {
	start, end uint32 // in the text; of a string without the quotes
	next       uint32 // the node after this one and its content
	kind       kind
	escaped    bool // a string that contains a backslash
	excluded   bool // not part of the canonical form
}

// document is a parsed JSON text. It is strict where leniency would let two readers see two
// different messages: names are unique, text is UTF-8 without lone surrogates, nothing follows
// the value.
type document struct {
	text  []byte
	pos   int
	nodes []node
	open  []uint32 // the containers around pos, outermost first

	// Memory that is used again from document to document.
	names   []uint32 // the names of one object, while it is checked
	table   []uint32 // a hash set of names
	scratch []byte   // decoded names and strings
	members []member // the members of the objects being written, innermost last
	out     []byte   // what is hashed

	large bool // one of those that are let in a few at a time
}

// largeText is how long a text may be to be read at once. A longer one waits its turn: a document may take more than
// ten times the memory of its text, and as reading it is work for the processor alone, more of them than there are
// processors would not be done sooner.
const largeText = 64 << 10

var turns = make(chan struct{}, runtime.GOMAXPROCS(0))

var documents = sync.Pool{New: func() any { return new(document) }}

// parse returns the document that text holds. It must be released, and text not be changed
// before that.
func parse(text []byte) (*document, error) {
	d := documents.Get().(*document)
	if err := d.load(text); err != nil {
		d.release()
		return nil, err
	}
	return d, nil
}

// load makes d the document that text holds.
func (d *document) load(text []byte) error {
	if len(text) > largeText {
		turns <- struct{}{}
		d.large = true
	}
	d.text, d.pos, d.nodes, d.open = text, 0, d.nodes[:0], d.open[:0]
	return d.parse()
}

// release gives the document's memory back. What an unusually large message needed is not kept.
func (d *document) release() {
	if d.large {
		d.large = false
		<-turns
	}
	const keep = 1 << 20
	d.text = nil
	if cap(d.nodes) > keep/16 || cap(d.out) > keep || cap(d.scratch) > keep ||
		cap(d.table) > keep/4 || cap(d.names) > keep/4 || cap(d.members) > keep/32 {
		return
	}
	documents.Put(d)
}

// fewNames is up to how many members comparing each with each is faster than hashing them.
const fewNames = 12

var seed = maphash.MakeSeed()

// checkNames refuses an object that has two members of one name: which of the two counts
// differs from reader to reader, so that no key can be right for all of them.
func (d *document) checkNames(object uint32) error {
	d.names = d.names[:0]
	for at := object + 1; at < d.nodes[object].next; at = d.nodes[at+1].next {
		d.names = append(d.names, at)
	}
	if len(d.names) > fewNames {
		return d.checkManyNames()
	}
	for i, a := range d.names {
		for _, b := range d.names[:i] {
			if d.sameText(a, b) {
				return d.failDuplicate(a)
			}
		}
	}
	return nil
}

// checkManyNames is checkNames by an open-addressing hash set, whose size and thus whose cost
// is linear in the number of names; the seed keeps a sender from choosing names that collide.
func (d *document) checkManyNames() error {
	size := 1 << bits.Len(uint(2*len(d.names)))
	d.table = slices.Grow(d.table[:0], size)[:size]
	clear(d.table)
	mask := uint64(size - 1)
	for _, at := range d.names {
		h := maphash.Bytes(seed, d.decoded(at)) & mask
		for ; d.table[h] != 0; h = (h + 1) & mask {
			if d.sameText(at, d.table[h]) {
				return d.failDuplicate(at)
			}
		}
		d.table[h] = at // never 0: that is the root, and no name
	}
	return nil
}

func (d *document) failDuplicate(name uint32) error {
	n := d.nodes[name]
	text := d.text[n.start:min(n.end, n.start+64)]
	return d.fail(int(n.start)-1, "the member name %q stands twice in one object; names must be unique", text)
}

// raw returns the inside of a string as it stands in the text.
func (d *document) raw(at uint32) []byte { return d.text[d.nodes[at].start:d.nodes[at].end] }

// decoded returns what a string stands for, until the next call.
func (d *document) decoded(at uint32) []byte {
	if !d.nodes[at].escaped {
		return d.raw(at)
	}
	d.scratch = appendDecoded(d.scratch[:0], d.raw(at))
	return d.scratch
}

// sameText says whether two strings stand for the same text.
func (d *document) sameText(a, b uint32) bool {
	if !d.nodes[a].escaped && !d.nodes[b].escaped {
		return bytes.Equal(d.raw(a), d.raw(b))
	}
	d.scratch = appendDecoded(d.scratch[:0], d.raw(a))
	split := len(d.scratch)
	d.scratch = appendDecoded(d.scratch, d.raw(b))
	return bytes.Equal(d.scratch[:split], d.scratch[split:])
}

// find returns the value that a path selects.
func (d *document) find(p *Path) (at uint32, ok bool) {
	for i := range p.segments {
		if at, ok = d.step(at, &p.segments[i]); !ok {
			return 0, false
		}
	}
	return at, true
}

// step goes from a value to its member or element.
func (d *document) step(from uint32, s *segment) (uint32, bool) {
	end := d.nodes[from].next
	if !s.isIndex {
		if d.nodes[from].kind != kindObject {
			return 0, false
		}
		for name := from + 1; name < end; name = d.nodes[name+1].next {
			if string(d.decoded(name)) == s.name {
				return name + 1, true
			}
		}
		return 0, false
	}
	if d.nodes[from].kind != kindArray {
		return 0, false
	}
	index := s.index
	if index < 0 {
		for at := from + 1; at < end; at = d.nodes[at].next {
			index++
		}
	}
	for at := from + 1; at < end; at = d.nodes[at].next {
		if index == 0 {
			return at, true
		}
		index--
	}
	return 0, false
}
