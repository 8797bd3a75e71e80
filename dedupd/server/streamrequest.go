package server

import "errors"

// streamRequest is a CheckStreamRequest, and what it costs.
type streamRequest struct {
	id    uint64
	asked any // *wireCheck, *wireSettle or *wireBatch; nil: nothing that is known

	messages int   // what it counts as in the queue
	bytes    int64 // what it is taken to hold in memory
	refused  error // why it is not answered otherwise
}

var errSeveral = errors.New("a request on a stream asks one thing")

// read reads a request.
func (r *streamRequest) read(data []byte, limits Limits) error {
	w := wireOf(data)
	err := w.each(w.whole(), func(f field) error {
		switch f.tag {
		case fieldID:
			r.id = f.value
		case fieldCheck:
			one := &wireCheck{wire: w}
			return r.ask(one, one.read(f.at))
		case fieldStreamSettle:
			one := &wireSettle{wire: w}
			return r.ask(one, one.read(f.at))
		case fieldBatch:
			one := &wireBatch{wire: w}
			return r.ask(one, one.readChecks(f.at, limits.MaxBatch))
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.messages = 1
	if batch, is := r.asked.(*wireBatch); is {
		if err := limits.fits(batch.count, "batch.messages"); err != nil {
			r.refuse(err)
			return nil
		}
		r.messages = max(batch.count, 1)
	}
	r.bytes = int64(r.messages)*messageCost + 2*int64(len(data))
	return nil
}

// ask notes what is asked, unless it could not be read.
func (r *streamRequest) ask(what any, unread error) error {
	if r.asked != nil {
		return errSeveral
	}
	r.asked = what
	return unread
}

// refuse makes it a request that is answered with an error, and holds nothing.
func (r *streamRequest) refuse(err error) {
	r.asked, r.messages, r.bytes, r.refused = nil, 1, 0, err
}

// bytesOf is what requests hold together.
func bytesOf(requests []*streamRequest) int64 {
	var n int64
	for _, r := range requests {
		n += r.bytes
	}
	return n
}
