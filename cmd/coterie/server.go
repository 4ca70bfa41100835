package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/version"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie"
)

func serverCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "server [flags]",
		Short: "Start a server, with etcd's flags",
		// The grammar of etcd's flags is package flag's ("-name x", "--pre-vote=false"), not cobra's.
		DisableFlagParsing: true,
		ValidArgsFunction:  completeFlags,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, notes, err := load(args, os.Environ())
			switch {
			case errors.Is(err, flag.ErrHelp):
				printHelp(cmd.OutOrStdout())
				return nil
			case err != nil:
				return usageError{err}
			case s.showVersion:
				printVersion(cmd.OutOrStdout())
				return nil
			}
			ctx, release := untilSignal(cmd.Context())
			defer release()
			leaveRoom()
			go giveMemoryBack(ctx) // ends with ctx; nobody need wait
			return serve(ctx, s, notes, openNode, cmd.OutOrStdout())
		},
	}
}

// untilSignal returns a context that a termination signal or an interrupt ends. After that, further terminations change
// nothing, for some supervisors send more than one; a second interrupt ends the process at once, for a person who does
// not want to wait. The returned function gives the signals back.
func untilSignal(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	released := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { // until the first signal, or release, which waits for it
		select {
		case s := <-signals:
			cancel(fmt.Errorf("signal: %v", s))
			signal.Reset(syscall.SIGINT)
		case <-released:
		}
	})
	return ctx, func() {
		close(released)
		watching.Wait()
		signal.Stop(signals)
		cancel(nil)
	}
}

// A node is what the command needs of a running member.
type node interface {
	Done() <-chan struct{} // closed when the member has stopped by itself
	Err() error            // why, after Done
	Close() error          // stops it, and waits
}

// serve runs a member until ctx ends or the member fails.
//
// It stops in this order. systemd hears of it first, for it measures the time that stopping takes from there. Then the
// node closes: it takes no more requests before it stops what answers them. The log comes last, so that it has room for
// what the others have to say.
func serve(ctx context.Context, s *settings, notes []*note, open func(context.Context, coterie.Config) (node, error), stdout io.Writer) error {
	log, closeLog, err := s.log.build()
	if err != nil {
		return usageError{err}
	}
	defer closeLog()
	for _, n := range notes {
		log.Log(n.level, n.message, n.fields...)
	}
	config := s.config
	config.Logger = log
	log.Info("starting", zap.String("coterie-version", coterie.Version), zap.String("etcd-version", version.Version),
		zap.String("git-sha", commit()), zap.String("name", config.Name), zap.Strings("listen-client-urls", config.ListenClientURLs))

	n, err := open(ctx, config)
	if err != nil && ctx.Err() != nil {
		log.Info("stopped while starting", zap.Error(err))
		return nil
	}
	if err != nil {
		log.Error("failed to start", zap.Error(err))
		return fmt.Errorf("start: %w", err)
	}
	log.Info("ready to serve client requests", zap.Strings("listen-client-urls", config.ListenClientURLs))
	tellSystemd(log, daemon.SdNotifyReady)
	if !slices.Contains(s.log.outputs, logStdout) { // there it would stand between lines of JSON
		printBanner(stdout, config)
	}

	var failure error
	select {
	case <-ctx.Done():
		log.Info("stopping", zap.String("cause", context.Cause(ctx).Error()))
	case <-n.Done():
		if failure = n.Err(); failure == nil {
			failure = errors.New("the server stopped by itself")
		}
		log.Error("stopping after a failure", zap.Error(failure))
	}
	tellSystemd(log, daemon.SdNotifyStopping)
	if err := n.Close(); err != nil && failure == nil {
		log.Error("failed to stop in order", zap.Error(err))
		failure = fmt.Errorf("stop: %w", err)
	}
	log.Info("stopped")
	if errors.Is(failure, coterie.ErrRemoved) {
		return nil // that was asked for; as with etcd, a supervisor must not take it for a crash and start it again
	}
	return failure
}

// tellSystemd reports the state of the service, if systemd (Type=notify) asks for it.
func tellSystemd(log *zap.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told of the state", zap.String("state", state), zap.Error(err))
	}
}

// printBanner tells people what runs where, and how to go on.
func printBanner(w io.Writer, c coterie.Config) {
	dir := c.DataDir
	if dir == "" {
		dir = c.Name + ".coterie"
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	ctl := "coterie ctl"
	if endpoint := c.ListenClientURLs[0]; endpoint != coterie.DefaultConfig().ListenClientURLs[0] {
		ctl += " --endpoints " + endpoint
		if strings.HasPrefix(endpoint, "https:") || strings.HasPrefix(endpoint, "unixs:") {
			ctl += " --cacert FILE"
		}
	}
	fmt.Fprintf(w, `Coterie %s, etcd API %s, member %q
  data     %s
  clients  %s
  peers    %s
  try      %s put greeting hello
           %s get greeting
  stop     Ctrl-C
`, coterie.Version, version.Version, c.Name, dir, strings.Join(c.ListenClientURLs, ", "), strings.Join(c.ListenPeerURLs, ", "), ctl, ctl)
}

// completeFlags lists the flags for shells.
func completeFlags(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var flags []string
	for _, o := range options(newSettings()) {
		if word := "--" + o.name; o.from != fileOnly && o.section != obsolete && strings.HasPrefix(word, prefix) {
			flags = append(flags, word+"\t"+o.usage)
		}
	}
	return flags, cobra.ShellCompDirectiveDefault
}
