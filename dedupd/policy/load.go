package policy

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// maxFile is the greatest size of a configuration file in bytes. A cluster stores no object
// that comes near it.
const maxFile = 4 << 20

// Load compiles the policies of a file, or of the *.yaml, *.yml and *.json files of a
// directory in the order of their names. Names that begin with a dot are left out: a mounted
// ConfigMap keeps its versions behind them. See Read for strict. A directory that is not read
// strictly is a mounted ConfigMap, to which others may add: there only files that the operator has
// named count. Two policies of one name are an error that names both files.
func Load(path string, strict bool) ([]*Policy, error) {
	files, err := configFiles(path, strict)
	if err != nil {
		return nil, err
	}
	var out []*Policy
	from := map[string]string{}
	for _, file := range files {
		policies, err := loadFile(file, strict)
		if err != nil {
			return nil, err
		}
		for _, p := range policies {
			if first, ok := from[p.Name]; ok {
				return nil, fmt.Errorf("metadata.name: the policy %q is in %s and in %s; a name is what a check asks for, so it must be unique", p.Name, first, file)
			}
			from[p.Name] = file
		}
		out = append(out, policies...)
	}
	return out, nil
}

func configFiles(path string, strict bool) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	counts, names := manifestFile, "*.yaml, *.yml or *.json"
	if !strict {
		counts, names = v1alpha1.IsPolicyFile, v1alpha1.PolicyFile+" or "+v1alpha1.PoolFile("*")
	}
	var files []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !e.IsDir() && counts(e.Name()) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("reading policies: no %s file in %s", names, path)
	}
	return files, nil
}

func manifestFile(name string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

func loadFile(file string, strict bool) ([]*Policy, error) {
	f, err := os.Open(file) //nolint:gosec // the user names the file
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: more than %d MiB, which no policy needs", file, maxFile>>20)
	}
	policies, err := Read(data, strict)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return policies, nil
}
