package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// Config is where the configuration stands, and how it is read.
type Config struct {
	Path   string
	Strict bool // an unknown field is an error

	// CallerKeys is the file with the keys by which the tokens of policies' callers are checked;
	// empty: v1alpha1.IssuerFile beside the policies.
	CallerKeys string

	// SecretsDir holds a folder for each Secret that a policy's store names. A pod has those that its policies
	// named when it was made: a policy that comes to name another runs as before until it is there.
	SecretsDir string
}

// config is what the service knows of its configuration. Only one goroutine at a time uses it.
type config struct {
	Config
	loaded string   // the fingerprint of what runs; empty: to be tried again
	said   string   // the error that was logged last
	awaits []string // the folders of Secrets for which policies run as before
}

// LoadConfig loads the configuration for the first time. Unlike later, an error is final.
func (s *Service) LoadConfig(c Config) error {
	s.config.Config = c
	return s.load()
}

// watchConfig looks at the configuration at each tick until ctx ends. It looks at the content
// and not at times: a mounted ConfigMap is exchanged by a symbolic link, which no watch on the
// file would see.
func (s *Service) watchConfig(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.reload()
		}
	}
}

// reload loads a configuration that has changed. One that cannot run is tried again at each
// tick, and is said once. What ran before runs on.
func (s *Service) reload() {
	err := s.load()
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.configError.Store(&text)
	if text == s.config.said {
		return
	}
	s.config.said = text
	if err == nil {
		s.Log.Info("the configuration file is in order again")
		s.Metrics.reloadOK.Set(1)
		return
	}
	s.Metrics.reloadOK.Set(0)
	s.Metrics.reloads.WithLabelValues("error").Inc()
	s.Log.Error("the configuration file cannot be used; what ran before runs on", "error", err)
}

func (s *Service) load() error {
	// Taken before the files are read: what changes in between is seen at the next tick.
	found, err := fingerprint(s.config.Path, s.config.keysFile())
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if found == s.config.loaded && !slices.ContainsFunc(s.config.awaits, exists) {
		return nil
	}
	policies, err := policy.Load(s.config.Path, s.config.Strict)
	if err != nil {
		return err
	}
	standing, awaits := s.standing(policies)
	callers, err := s.loadCallers(policies, standing)
	if err != nil {
		return err
	}
	for i, was := range standing {
		if was != nil {
			policies[i] = was
		}
	}
	if err := s.apply(policies, callers); err != nil {
		return err
	}
	s.config.loaded, s.config.awaits = found, awaits
	s.Metrics.reloads.WithLabelValues("success").Inc()
	s.Metrics.reloadOK.Set(1)
	if len(awaits) > 0 {
		s.Metrics.reloadOK.Set(0)
	}
	s.Metrics.reloadedAt.Set(float64(s.Now().UnixMilli()) / 1000)
	for _, p := range policies {
		s.announce(p)
	}
	select {
	case s.reloaded <- struct{}{}:
	default: // the stores are about to be asked anyway
	}
	return nil
}

// apply makes policies the ones that run, with their callers. On an error everything stays as it was.
func (s *Service) apply(policies []*policy.Policy, by *callers) error {
	s.gone.mu.Lock() // a policy that comes back begins no series that are about to be forgotten
	defer s.gone.mu.Unlock()
	before := s.Registry.Names()
	// Before the policies run, so that none of them is asked for with the keys of before, and not before it is
	// sure that they will, or those that run on would lose theirs.
	if err := s.Registry.Apply(policies, func() { s.callers.Store(by) }); err != nil {
		return err
	}
	now, after := s.Now(), s.Registry.Names()
	for _, name := range before {
		if !slices.Contains(after, name) {
			s.gone.since[name] = now
		}
	}
	return nil
}

// standing are the policies that run and go on as they are, each at the place of the one of its name: that has
// another store, and needs a Secret for it that this pod has not. awaits are the folders that are not there.
func (s *Service) standing(policies []*policy.Policy) (standing []*policy.Policy, awaits []string) {
	standing = make([]*policy.Policy, len(policies))
	for i, p := range policies {
		was := s.Registry.policy(p.Name)
		if was == nil || was.StoreHash == p.StoreHash {
			continue
		}
		for _, secret := range p.StoreSpec.Secrets() {
			if folder := filepath.Join(s.config.SecretsDir, secret); !exists(folder) {
				standing[i], awaits = was, append(awaits, folder)
				s.Log.Warn("the policy runs as before: its store names a Secret that this pod has not; a pod that is made now has it", "policy", p.Name, "secret", secret)
			}
		}
	}
	return standing, awaits
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (s *Service) announce(p *policy.Policy) {
	log := s.Log.With("policy", p.Name, "namespace", p.Namespace, "configHash", p.ConfigHash)
	if len(p.UnknownFields) > 0 {
		log.Warn("the policy has fields that this version of dedupd does not know", "fields", strings.Join(p.UnknownFields, ", "))
	}
	log.Info("the policy runs", "mode", string(p.Mode), "ttl", p.TTL.String(), "store", p.StoreSpec.Kind())
}

// fingerprint is a hash of the file, or of every file of the directory that has no dot in
// front, and of another file if it is there. It may cover more files than are loaded, never fewer.
func fingerprint(path, another string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	files := []string{path}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return "", err
		}
		files = nil
		for _, e := range entries {
			// A mounted file is a symbolic link: its own type says nothing.
			if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	if _, err := os.Stat(another); err == nil {
		files = append(files, another)
	}
	all := sha256.New()
	for _, file := range files {
		data, err := os.ReadFile(file) //nolint:gosec // the user names the file
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(data)
		_, _ = fmt.Fprintf(all, "%q %x\n", file, sum) // a hash takes everything
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}
