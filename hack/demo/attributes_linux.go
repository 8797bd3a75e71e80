package main

import "syscall"

// attributes give a process a group of its own, so that Ctrl-C reaches the demo alone, which then stops the
// rest in order. When the demo is killed, the kernel does.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
