package redistest

import (
	"syscall"
	"unsafe"
)

// NoLimit is no limit at all.
const NoLimit = ^uint64(0)

// LimitFiles keeps the server from writing any file beyond a size: to it, the disk is full. No
// privilege is needed, as only the limit that it may raise itself is set. A server that does
// not ignore SIGXFSZ ends by it: it has to be started by a process that ignores it.
func (s *Server) LimitFiles(size uint64) {
	s.tb.Helper()
	var limit struct{ soft, hard uint64 }
	s.prlimit(nil, unsafe.Pointer(&limit))
	limit.soft = min(size, limit.hard)
	s.prlimit(unsafe.Pointer(&limit), nil)
}

func (s *Server) prlimit(set, get unsafe.Pointer) {
	s.tb.Helper()
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(s.cmd.Process.Pid), syscall.RLIMIT_FSIZE, uintptr(set), uintptr(get), 0, 0)
	if errno != 0 {
		s.tb.Fatalf("limit of the files of redis-server: %v", errno)
	}
}
