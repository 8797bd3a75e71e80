package proof

import (
	"fmt"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
)

// onPostgres starts a replica on a database.
func onPostgres(t *testing.T, m mode, addr, database string) *replica {
	t.Helper()
	dir := postgrestest.Secrets(t, map[string]string{"creds/username": "postgres", "creds/password": "unused"})
	store := fmt.Sprintf("postgres: {addresses: [%q], database: %s, credentialsSecretRef: {name: creds}}", addr, database)
	return startReplica(t, manifest(m, store), "--secrets-dir", dir)
}

// The links between two dedupd and PostgreSQL break under load, and the server is killed and
// started again. It forgets nothing that it has acknowledged.
func TestPostgresAndTheLinksToItFail(t *testing.T) {
	t.Parallel()
	for _, m := range []mode{modeClaim, modeMark} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			seed := faulttest.Seed(t)
			server := postgrestest.Start(t)
			database := server.Database()
			dice := faulttest.NewDice(seed, 0)
			var replicas []*replica
			for range 2 {
				replicas = append(replicas, onPostgres(t, m, faulttest.StartLink(t, server.Addr, dice).Addr, database))
			}
			q := newQueue(m, seed)
			stop := q.flow()
			q.consumers(t, 8, untiring(replicas...))
			q.reach(t, 50)
			dice.OneIn(25)
			q.reach(t, 200)
			server.Restart()
			q.reach(t, 100)
			for dice.Thrown() < 10 { // fewer, fuller batches meet fewer
				q.reach(t, 20)
			}
			dice.OneIn(0)
			stop()
			q.wait(t)
			q.remembered(t, untiring(replicas...))
			q.mustHold(t, nil)
		})
	}
}
