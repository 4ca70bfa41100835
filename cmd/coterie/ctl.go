package main

import (
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
)

func ctlCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ctl [etcdctl's arguments]",
		Short: "Talk to a server: etcdctl itself, built in",
		Long: `Talk to a server. This is etcdctl itself, built in: every command, flag and ETCDCTL_ variable is etcdctl's,
and its help calls it by that name.`,
		Example:            "  coterie ctl put greeting hello\n  coterie ctl get greeting\n  coterie ctl --help",
		DisableFlagParsing: true,
		Run:                func(_ *cobra.Command, args []string) { etcdctl(args) },
	}
}

// etcdctl becomes etcdctl. Its watch command reads os.Args itself, so they must look as its own would.
func etcdctl(args []string) {
	os.Args = append([]string{"etcdctl"}, args...)
	ctlv3.MustStart()
}
