package controllers

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// patience is how long a cache is given to catch up.
const patience = 250 * time.Millisecond

// patient takes for no failure what happens in the ordinary course of things: that the cache was behind, or
// someone else was faster, and that the operator ends. In the end it is another process that tries again.
func patient(r reconcile.Reconciler) reconcile.Reconciler {
	return reconcile.Func(func(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
		result, err := r.Reconcile(ctx, request)
		if err != nil && (ctx.Err() != nil || onlyConflicts(err)) {
			log.FromContext(ctx).V(1).Info("trying again", "because", err.Error())
			result, err = reconcile.Result{RequeueAfter: patience}, nil
		}
		return result, err
	})
}

// onlyConflicts reports whether each of the errors that were joined is a conflict.
func onlyConflicts(err error) bool {
	switch e := err.(type) { //nolint:errorlint // it walks the tree itself: errors.As is content with one
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			if !onlyConflicts(err) {
				return false
			}
		}
		return true
	case interface{ Unwrap() error }:
		return onlyConflicts(e.Unwrap())
	}
	return apierrors.IsConflict(err)
}
