package network

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxHosts   = 100
	maxSlots   = 250 // networks at a time
	mtu        = 9000
	clientHost = 254 // last number of the clients' address
	device     = "/dev/net/tun"
)

// Available says why no network can be made here, or nil.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("a network of namespaces needs the rights of root")
	}
	if _, err := os.Stat(device); err != nil {
		return fmt.Errorf("a network of namespaces needs %s: %w", device, err)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return fmt.Errorf("a network of namespaces needs the program ip, of the package iproute2: %w", err)
	}
	return nil
}

// build makes what Close removes. Each thing is noted for removal as soon as it is there.
func (n *Network) build(size int, r *rand.Rand) error {
	slot, err := n.claim()
	if err != nil {
		return err
	}
	lines := map[int]io.Writer{}
	devices := map[int]*os.File{}
	for i := Clients; i < size; i++ {
		tun, err := n.host(slot, i)
		if err != nil {
			return fmt.Errorf("make host %d: %w", i, err)
		}
		n.remove = append(n.remove, tun.Close)
		lines[i], devices[i] = tun, tun
	}
	n.router = newRouter(lines, r)
	for i, tun := range devices {
		n.readers.Go(func() { n.read(i, tun) }) // ends when Close closes the device, and waits
	}
	return nil
}

// host makes one host: its namespace, its device, its address. It returns the router's end of the device.
func (n *Network) host(slot, i int) (*os.File, error) {
	if i == Clients {
		name := fmt.Sprintf("coterie%d", slot)
		tun, err := openTun("", name)
		if err != nil {
			return nil, err
		}
		return tun, up(tun, "", name, address(slot, clientHost))
	}
	space := fmt.Sprintf("coterie-%d-%d", slot, i)
	if err := ip("netns", "add", space); err != nil {
		return nil, err
	}
	n.remove = append(n.remove, func() error { return ip("netns", "del", space) })
	if err := ip("-n", space, "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	tun, err := openTun(space, "tun0")
	if err != nil {
		return nil, err
	}
	n.hosts = append(n.hosts, address(slot, i+1))
	n.spaces = append(n.spaces, space)
	return tun, up(tun, space, "tun0", address(slot, i+1))
}

func address(slot, host int) string { return fmt.Sprintf("10.231.%d.%d", slot, host) }

// up gives a device its address, and with it the way to all hosts of the network.
func up(tun *os.File, space, name, addr string) error {
	var in []string
	if space != "" {
		in = []string{"-n", space}
	}
	err := errors.Join(
		ip(append(in, "addr", "add", addr+"/24", "dev", name)...),
		ip(append(in, "link", "set", name, "mtu", strconv.Itoa(mtu), "up")...),
	)
	if err != nil {
		return errors.Join(err, tun.Close())
	}
	return nil
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// openTun makes a device in a namespace, or in the process's own. It exists for as long as it is open.
func openTun(space, name string) (*os.File, error) {
	if space == "" {
		return openTunHere(name)
	}
	type result struct {
		tun *os.File
		err error
	}
	done := make(chan result)
	// A device belongs to the namespace of the thread that opens it. The thread is not unlocked, so that it ends with
	// this goroutine and nothing else ever runs in that namespace.
	go func() {
		runtime.LockOSThread()
		tun, err := openTunIn(space, name)
		done <- result{tun, err}
	}()
	r := <-done
	return r.tun, r.err
}

func openTunIn(space, name string) (*os.File, error) {
	file, err := os.Open(filepath.Join("/var/run/netns", space))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter namespace %s: %w", space, err)
	}
	return openTunHere(name)
}

func openTunHere(name string) (*os.File, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), device), nil // nonblocking, so that closing it ends a read
}

// read routes what a host sends until its device is closed.
func (n *Network) read(from int, tun *os.File) {
	buffer := make([]byte, 1<<16)
	for {
		size, err := tun.Read(buffer)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // the device is down for the moment
		}
		if to, ok := destination(buffer[:size]); ok {
			n.router.pass(from, to, buffer[:size])
		}
	}
}

// destination reads from an IPv4 packet which host it is for. Others, such as a new device's IPv6 questions, are for none.
func destination(packet []byte) (int, bool) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return 0, false
	}
	switch last := int(packet[19]); {
	case last == clientHost:
		return Clients, true
	case last >= 1 && last <= maxHosts:
		return last - 1, true
	}
	return 0, false
}

// claim takes a slot that no living process has, and removes what earlier owners of free slots have left.
func (n *Network) claim() (int, error) {
	if err := sweep(); err != nil {
		return 0, err
	}
	for slot := range maxSlots {
		release, err := lock(slot)
		if err != nil {
			return 0, err
		}
		if release != nil {
			n.remove = append(n.remove, release)
			return slot, nil
		}
	}
	return 0, fmt.Errorf("there are %d networks already; close some", maxSlots)
}

var spaceName = regexp.MustCompile(`(?m)^coterie-(\d+)-\d+\b`)

// sweep removes the namespaces of slots that nobody has.
func sweep() error {
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, found := range spaceName.FindAllSubmatch(out, -1) {
		slot, err := strconv.Atoi(string(found[1]))
		if err != nil {
			return err
		}
		release, err := lock(slot)
		if err != nil {
			return err
		}
		if release == nil {
			continue
		}
		// Two that sweep at a time take turns by the lock; one finds nothing left.
		_ = ip("netns", "del", string(found[0]))
		if err := release(); err != nil {
			return err
		}
	}
	return nil
}

// lock takes a slot and returns what gives it back, or nil when somebody has it. A slot is a name among abstract sockets,
// which the system gives back when its process ends and which leaves no file.
func lock(slot int) (func() error, error) {
	l, err := net.Listen("unix", fmt.Sprintf("@coterie-network-%d", slot))
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("claim network %d: %w", slot, err)
	}
	return l.Close, nil
}
