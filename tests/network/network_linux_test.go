package network

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// open makes a network, or skips the test where none can be made and nobody insists.
func open(t *testing.T, size int) *Network {
	t.Helper()
	if err := Available(); err != nil {
		if os.Getenv("COTERIE_TEST_NETWORK") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v (set COTERIE_TEST_NETWORK to make this a failure)", err)
	}
	n, err := Open(size, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TestNetwork asks, from the test process and between hosts, who reaches whom under which rules.
func TestNetwork(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("rules", func(t *testing.T) {
		n := open(t, 2)
		l, err := net.Listen("tcp", net.JoinHostPort(address(slotOf(t, n), clientHost), "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		received := make(chan string)
		go serve(l, received) // ends when the listener is closed, which is before the network is
		_, port, _ := net.SplitHostPort(l.Addr().String())

		say := func(from int, word string) error {
			target := strings.Join([]string{"/dev/tcp", address(slotOf(t, n), clientHost), port}, "/")
			command := append(n.Command(from), "timeout", "2", "bash", "-c", "echo "+word+" > "+target)
			return exec.Command(command[0], command[1:]...).Run()
		}
		hear := func() string {
			select {
			case word := <-received:
				return word
			case <-time.After(5 * time.Second):
				return "nothing"
			}
		}
		if err := say(0, "hello"); err != nil {
			t.Fatal(err)
		}
		if word := hear(); word != "hello" {
			t.Errorf("heard %s", word)
		}
		n.Set(0, Clients, Cut)
		if err := say(0, "cut"); err == nil {
			t.Error("a host that is cut off connected")
		}
		if err := say(1, "other"); err != nil {
			t.Errorf("a host that is not cut off: %v", err)
		}
		if word := hear(); word != "other" {
			t.Errorf("heard %s", word)
		}
		n.Heal()
		n.Set(0, Clients, Rule{Delay: 10 * time.Millisecond, Jitter: 20 * time.Millisecond, Duplicate: 0.5})
		if err := say(0, "again"); err != nil {
			t.Fatal(err)
		}
		if word := hear(); word != "again" {
			t.Errorf("heard %s", word)
		}
		if c := n.Counts(); c.Lost == 0 || c.Delayed == 0 {
			t.Errorf("counts: %+v", c)
		}
		ping := func() error {
			command := append(n.Command(0), "timeout", "2", "bash", "-c", "echo > /dev/tcp/"+n.Addr(1)+"/9")
			out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
			if bytes.Contains(out, []byte("refused")) {
				return nil // an answer
			}
			return errors.Join(err, errors.New(string(out)))
		}
		n.Heal()
		if err := ping(); err != nil {
			t.Errorf("from host to host: %v", err)
		}
		n.Set(1, 0, Cut) // the answer
		if err := ping(); err == nil {
			t.Error("an answer came through a direction that is cut")
		}
	})
}

func serve(l net.Listener, received chan<- string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		var word [64]byte
		size, _ := conn.Read(word[:])
		conn.Close()
		if size > 0 {
			received <- strings.TrimSpace(string(word[:size]))
		}
	}
}

func slotOf(t *testing.T, n *Network) int {
	t.Helper()
	return int(net.ParseIP(n.Addr(0)).To4()[2])
}

// TestLeftoversAreRemoved makes what a killed process would leave, a namespace of a slot that nobody holds.
func TestLeftoversAreRemoved(t *testing.T) {
	open(t, 1) // whether it can be done at all
	const left = "coterie-249-7"
	if err := ip("netns", "add", left); err != nil {
		t.Fatal(err)
	}
	first, second := open(t, 1), open(t, 1)
	if first.Addr(0) == second.Addr(0) {
		t.Errorf("two networks have one address: %s", first.Addr(0))
	}
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out, []byte(left)) {
		t.Errorf("%s is still there:\n%s", left, out)
	}
	for _, n := range []*Network{first, second} {
		if !bytes.Contains(out, []byte(n.spaces[0])) {
			t.Errorf("%s is gone, but it is in use:\n%s", n.spaces[0], out)
		}
	}
}
