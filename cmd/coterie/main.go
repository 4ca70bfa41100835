// Command coterie is the server and its tools in one binary.
//
// It owns what belongs to a process and not to a library: flags, environment variables, the configuration file, the
// log's outputs, signals, and what systemd is told. It turns them into a coterie.Config, hands over to the root
// package, and waits. It must not know how anything is served or stored.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coteriedb/coterie"
)

// The exit statuses.
const (
	exitFailure = 1 // something went wrong while running
	exitUsage   = 2 // the command line, the environment or the configuration file is wrong
)

// usageError marks what the user can mend by asking differently.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	if err := run(commandLine(os.Args)); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintln(os.Stderr, "coterie:", line)
		}
		if errors.As(err, new(usageError)) {
			os.Exit(exitUsage)
		}
		os.Exit(exitFailure)
	}
}

// commandLine returns Coterie's arguments, given the program's name and arguments. Under the names of etcd's programs
// it behaves as they do, so that a link is all that a script needs.
func commandLine(args []string) []string {
	switch strings.TrimSuffix(filepath.Base(args[0]), ".exe") {
	case "etcd":
		return append([]string{"server"}, args[1:]...)
	case "etcdctl":
		return append([]string{"ctl"}, args[1:]...)
	}
	return args[1:]
}

func run(args []string) error {
	// Shells ask for completions by a hidden command in front. Those of ctl are etcdctl's to give.
	if len(args) > 1 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) && args[1] == "ctl" {
		etcdctl(append([]string{args[0]}, args[2:]...))
		return nil
	}
	root := rootCommand()
	root.SetArgs(args)
	return root.ExecuteContext(context.Background())
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "coterie",
		Short: "A coordination server that speaks etcd's API",
		Long: `Coterie is a coordination server that speaks etcd's v3 API: etcdctl, clientv3 and every other etcd client
work with it unmodified.`,
		Version:       coterie.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usageError{fmt.Errorf("unknown command %q%s", args[0], didYouMean(args[0], commandNames(cmd)))}
		},
		Args: cobra.ArbitraryArgs, // so that RunE answers for unknown commands
	}
	root.SetVersionTemplate(versionText())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(serverCommand(), demoCommand(), ctlCommand(), snapshotCommand(), migrateCommand(), benchCommand(), versionCommand())
	return root
}

func commandNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	return names
}

func versionText() string {
	var b strings.Builder
	printVersion(&b)
	return b.String()
}
