package target

import (
	"context"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// The packages of etcd's programs that the suites run. This module's go.mod names them as tools.
const (
	Etcdctl = "go.etcd.io/etcd/etcdctl/v3"
	Etcdutl = "go.etcd.io/etcd/etcdutl/v3"
)

// BuildCoterie compiles the server of this repository into dir and returns the path of the binary. It is built
// in its own module, with the versions that users get, not with those of the tests.
func BuildCoterie(ctx context.Context, dir string) (string, error) {
	tests, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	return build(ctx, filepath.Dir(tests), "./cmd/coterie", filepath.Join(dir, "coterie"))
}

// BuildTool compiles one of etcd's programs into dir and returns the path of the binary.
func BuildTool(ctx context.Context, dir, pkg string) (string, error) {
	tests, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	return build(ctx, tests, pkg, filepath.Join(dir, path.Base(path.Dir(pkg))))
}

// moduleRoot is the directory of the tests' module, of which the caller is a package.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the tests' module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

func build(ctx context.Context, dir, pkg, binary string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, pkg)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return binary, nil
}
