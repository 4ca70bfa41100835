package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"go.etcd.io/etcd/api/v3/version"

	"github.com/coteriedb/coterie"
)

// introduce says what runs, and what to try with it.
func (d *demo) introduce(ctx context.Context, interactive bool) {
	d.sayf("\nCoterie %s, etcd API %s, a cluster of %s in one process\n", coterie.Version, version.Version, plural(len(d.members), "member"))
	d.table(ctx)
	d.sayf("\n  data  %s\n  log   %s\n\nTry in another terminal:\n", d.dir, demoLog(d.dir))
	ctl := program(os.Args[0]) + " ctl --endpoints "
	first, last := d.plan.Members[0].Client, d.plan.Members[len(d.plan.Members)-1].Client
	d.sayf("  %s%s endpoint status --cluster -w table", ctl, first)
	d.sayf("  %s%s watch --prefix jobs/    # leave it open", ctl, last)
	d.sayf("  %s%s put jobs/1 ready", ctl, first)
	d.sayf("  %s%s get --prefix jobs/", ctl, last)
	if other := d.follower(); other != nil {
		d.sayf("  %s%s move-leader %x    # to member %d", ctl, d.plan.endpoints(), other.id, other.number)
	}
	d.sayf("")
	if interactive {
		d.sayf("Type a member's number and Enter to stop it, and again to start it; Enter alone shows the members.")
	}
	d.sayf("Ctrl-C ends the demo.")
}

// follower is a member that could lead instead.
func (d *demo) follower() *demoMember {
	for _, m := range d.members {
		if m != d.leader && m.id != 0 {
			return m
		}
	}
	return nil
}

// table lists the members.
func (d *demo) table(ctx context.Context) {
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  MEMBER\tID\tCLIENTS\tPEERS\tREVISION\tIS")
	for i, m := range d.members {
		revision, is := "", "stopped"
		if m.gone {
			is = "removed"
		}
		if m.node != nil {
			if st, err := m.status(ctx); err != nil {
				is = err.Error()
			} else {
				revision, is = fmt.Sprint(st.Header.Revision), role(st.Leader, m.id)
			}
		}
		fmt.Fprintf(w, "  %d\t%x\t%s\t%s\t%s\t%s\n", m.number, m.id, d.plan.Members[i].Client, d.plan.Members[i].Peer, revision, is)
	}
	w.Flush() // to a terminal, or to nobody who could be told
}

func role(leader, id uint64) string {
	switch leader {
	case 0:
		return "without a leader"
	case id:
		return "leader"
	}
	return "follower"
}

// program is how a program that was called by a name can be called again.
func program(called string) string {
	switch {
	case strings.Contains(called, string(filepath.Separator)+"go-build"):
		return "go run ./cmd/coterie" // go run, which is given the package's directory in all our texts
	case filepath.Base(called) != called:
		return called
	}
	if _, err := exec.LookPath(called); err != nil {
		return "coterie"
	}
	return called
}
