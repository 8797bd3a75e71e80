package policy

import (
	"regexp"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

func (c *checker) deployment(at *field.Path, d *v1alpha1.DeploymentSpec, memory bool) {
	replicas, autoscaling := at.Child("replicas"), at.Child("autoscaling")
	c.pool(at.Child("pool"), d.Pool, memory)
	if d.Replicas != nil {
		c.upTo(replicas, int64(*d.Replicas), 100)
		if memory && *d.Replicas != 1 {
			c.invalid(replicas, *d.Replicas, "must be 1 with store.memory, whose marks live in a single process; use store.redis for more replicas")
		}
	}
	if a := d.Autoscaling; a != nil {
		if memory {
			c.forbidden(autoscaling, "not with store.memory, whose marks live in a single process; use store.redis")
		}
		if d.Replicas != nil {
			c.forbidden(autoscaling, "replicas or autoscaling, not both; with autoscaling the HorizontalPodAutoscaler sets the replicas")
		}
		c.upTo(autoscaling.Child("minReplicas"), int64(a.MinReplicas), 100)
		c.upTo(autoscaling.Child("maxReplicas"), int64(a.MaxReplicas), 100)
		c.upTo(autoscaling.Child("targetCPUUtilization"), int64(a.TargetCPUUtilization), 100)
		if a.MaxReplicas > 0 && a.MinReplicas > a.MaxReplicas {
			c.invalid(autoscaling.Child("minReplicas"), a.MinReplicas, "must not exceed maxReplicas (%d)", a.MaxReplicas)
		}
	}
	c.count(at.Child("tolerations"), len(d.Tolerations), 0, 32)
	c.length(at.Child("priorityClassName"), d.PriorityClassName, 0, 253)
	if d.Resources != nil {
		seen := map[string]bool{}
		for i, claim := range d.Resources.Claims {
			at := at.Child("resources", "claims").Index(i).Child("name")
			switch {
			case claim.Name == "":
				c.required(at, "the name of a resource claim")
			case seen[claim.Name]:
				c.errs = append(c.errs, field.Duplicate(at, claim.Name))
			}
			seen[claim.Name] = true
		}
	}
}

var poolPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

const maxPool = 51

func (c *checker) pool(at *field.Path, pool string, memory bool) {
	switch {
	case pool == "":
		return
	case len(pool) > maxPool:
		c.invalid(at, abridged(pool), "%d characters; at most %d, so that %s is a valid name for every object of the pool",
			len(pool), maxPool, v1alpha1.PoolChildName("<pool>"))
	case !poolPattern.MatchString(pool):
		c.invalid(at, pool, "lower-case letters, digits and '-', neither first nor last a '-'")
	}
	if memory {
		c.forbidden(at, "not with store.memory, whose marks live in a single process; use store.redis or store.postgres, or remove pool")
	}
}
