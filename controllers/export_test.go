package controllers

import (
	"context"

	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Named is what the controller calls.
func (r *Reconciler) Named(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	return r.named(ctx, request)
}

// Remembered is of how many policies something is kept in memory.
func (r *Reconciler) Remembered() (n int) {
	r.published.Range(func(any, any) bool {
		n++
		return true
	})
	return n
}
