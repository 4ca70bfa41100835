package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.uber.org/zap"
)

// demoSettings are the flags of demo.
type demoSettings struct {
	members  int // 0: as many as the directory has, or else the default
	dataDir  string
	keep     bool
	logLevel string
}

func demoCommand() *cobra.Command {
	var s demoSettings
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Try a cluster: several members in one process",
		Long: `Try a cluster: several members in one process, on ports of this machine that are free, with things to try.
Members can be stopped and started by their number and Enter. Ctrl-C ends the demo; its data goes with it, unless
--keep or --data-dir says otherwise. "coterie server" is for clusters that shall last.`,
		Example: "  coterie demo\n  coterie demo --members 5 --data-dir trial",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("members") && (s.members < 1 || s.members > maxDemoMembers) {
				return usageError{fmt.Errorf("--members %d: a demo has 1 to %d members; 3 and 5 are the sizes that clusters should have", s.members, maxDemoMembers)}
			}
			ctx, release := untilSignal(cmd.Context())
			defer release()
			ctx, unhook := untilHangup(ctx)
			defer unhook()
			var keys <-chan string
			if isatty.IsTerminal(os.Stdin.Fd()) {
				keys = lines(ctx, os.Stdin)
			}
			return s.run(ctx, cmd.OutOrStdout(), keys)
		},
	}
	f := cmd.Flags()
	f.IntVar(&s.members, "members", 0, fmt.Sprintf("how many members, up to %d (default %d, or as many as --data-dir has)", maxDemoMembers, defaultDemoMembers))
	f.StringVar(&s.dataDir, "data-dir", "", "where the data is, which is kept (default a temporary directory, which is removed)")
	f.BoolVar(&s.keep, "keep", false, "keep the temporary directory")
	f.StringVar(&s.logLevel, "log-level", "", "show the members' log from this level on: debug, info, warn, error (default: it only goes to a file)")
	return cmd
}

// untilHangup adds the end of the terminal to what ends a demo, for its data would be left behind.
func untilHangup(ctx context.Context) (context.Context, func()) {
	if signal.Ignored(syscall.SIGHUP) { // nohup
		return ctx, func() {}
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// lines passes on what is typed. A read of a terminal cannot be interrupted, so its goroutine ends with the next line
// after ctx, or with the process.
func lines(ctx context.Context, r io.Reader) <-chan string {
	out := make(chan string)
	go func() {
		defer close(out)
		for in := bufio.NewScanner(r); in.Scan(); {
			select {
			case out <- in.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// run is a demo from its plan to its end. keys is nil if nobody can type.
func (s *demoSettings) run(ctx context.Context, out io.Writer, keys <-chan string) error {
	if err := s.log("").validate(); err != nil {
		return usageError{err}
	}
	dir, err := s.directory()
	if err != nil {
		return err
	}
	plan, err := planDemo(dir, s.members)
	if err != nil {
		if s.dataDir == "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		return err
	}
	if err := s.show(ctx, plan, dir, out, keys); err != nil {
		return errors.Join(err, fmt.Errorf("the members' log, %s, may say more", demoLog(dir)))
	}
	return s.leave(out, dir)
}

// show runs the members.
func (s *demoSettings) show(ctx context.Context, plan *demoPlan, dir string, out io.Writer, keys <-chan string) error {
	log, closeLog, err := s.log(dir).build()
	if err != nil {
		return err
	}
	defer closeLog()
	d := newDemo(plan, dir, log, out)
	err = d.start(ctx)
	if err == nil && ctx.Err() == nil {
		d.introduce(ctx, keys != nil)
		d.run(ctx, keys)
	}
	return errors.Join(err, d.close())
}

// directory returns where the data goes.
func (s *demoSettings) directory() (string, error) {
	if s.dataDir != "" {
		return filepath.Abs(s.dataDir)
	}
	return os.MkdirTemp("", "coterie-demo-")
}

// leave removes the data of a demo, or tells where it is.
func (s *demoSettings) leave(out io.Writer, dir string) error {
	if s.dataDir != "" || s.keep {
		fmt.Fprintf(out, "The demo has ended. To go on with its data: %s demo --data-dir %s\n", program(os.Args[0]), dir)
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the demo's data: %w", err)
	}
	fmt.Fprintln(out, "The demo has ended; its data is removed.")
	return nil
}

func demoLog(dir string) string { return filepath.Join(dir, "log") }

// log writes to a file, and to the terminal if that is asked for.
func (s *demoSettings) log(dir string) *logSettings {
	l := &logSettings{outputs: []string{demoLog(dir)}, level: zap.InfoLevel.String(), format: logutil.JSONLogFormat}
	if s.logLevel != "" {
		l.outputs, l.level, l.format = append(l.outputs, logStderr), s.logLevel, logutil.ConsoleLogFormat
	}
	return l
}
