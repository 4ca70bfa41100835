package rpc

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// nodeModules is the variable that says where @grpc/grpc-js is installed ("npm install
// @grpc/grpc-js" makes a directory node_modules); the test is skipped without.
const nodeModules = "COTERIE_NODE_MODULES"

// TestNode has another implementation's client call the service, on both transports.
func TestNode(t *testing.T) { onEach(t, testNode) }

func testNode(t *testing.T, transport Transport) {
	dir := os.Getenv(nodeModules)
	if dir == "" {
		t.Skipf("%s does not say where @grpc/grpc-js is installed", nodeModules)
	}
	f := newFixture(t, Options{Transport: transport})
	newEchoService().register(f.Server)
	cmd := exec.CommandContext(t.Context(), "node", "testdata/echo.js", f.listen(t, Listener{}))
	cmd.Env = append(os.Environ(), "NODE_PATH="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("%v\n%s", err, out)
	}
}
