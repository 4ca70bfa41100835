package soak

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coteriedb/coterie/tests/target"
)

// sampler measures the members that run, again and again, until it is finished.
type sampler struct {
	cluster *target.Cluster
	began   time.Time
	web     *http.Client
	cancel  context.CancelFunc
	worker  sync.WaitGroup
	samples []Sample // Guarded by worker.
}

// startSampler begins to measure.
func startSampler(ctx context.Context, c *target.Cluster, every time.Duration) *sampler {
	s := &sampler{cluster: c, began: time.Now(), web: &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	ctx, s.cancel = context.WithCancel(ctx)
	s.worker.Go(func() { // finish ends it and waits
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.all(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	return s
}

// finish ends the measuring and returns all samples. It may be called more than once.
func (s *sampler) finish() []Sample {
	s.cancel()
	s.worker.Wait()
	return s.samples
}

// all measures each member. One that is being killed or started gives no sample: there is no process to measure, or it does not answer yet.
func (s *sampler) all(ctx context.Context) {
	for _, i := range s.cluster.Running() {
		if sample, err := s.one(ctx, i); err == nil {
			s.samples = append(s.samples, sample)
		}
	}
}

func (s *sampler) one(ctx context.Context, i int) (Sample, error) {
	sample := Sample{At: time.Since(s.began), Member: s.cluster.Name(i), Process: s.cluster.PID(i), Disk: sizeOf(s.cluster.DataDir(i))}
	var err error
	if sample.Memory, err = s.cluster.RSS(i); err != nil {
		return sample, err
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", sample.Process))
	if err != nil {
		return sample, err
	}
	sample.Files = int64(len(files))
	if sample.Goroutines, err = s.metric(ctx, s.cluster.Endpoint(i), "go_goroutines"); err != nil {
		return sample, err
	}
	return sample, nil
}

// profiles are what a member can say of a curve that is not flat.
var profiles = []string{"heap", "goroutine"}

// saveProfiles keeps the profiles of all members that run.
func saveProfiles(ctx context.Context, c *target.Cluster, dir string) error {
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var errs []error
	for _, i := range c.Running() {
		for _, name := range profiles {
			errs = append(errs, save(ctx, web, c.Endpoint(i)+"/debug/pprof/"+name, filepath.Join(dir, c.Name(i)+"."+name+".pprof")))
		}
	}
	return errors.Join(errs...)
}

func save(ctx context.Context, web *http.Client, url, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, resp.Body)
	return errors.Join(err, file.Close())
}

// metric asks a member for one of its metrics.
func (s *sampler) metric(ctx context.Context, endpoint, name string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := s.web.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseInt(value, 10, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("%s has no metric %s", endpoint, name), lines.Err())
}

// sizeOf is the size of all files below a directory. Some may go while others are counted.
func sizeOf(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}
