//go:build !linux

package main

import "syscall"

// attributes give a process a group of its own, so that Ctrl-C reaches the demo alone, which then stops the
// rest in order.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
