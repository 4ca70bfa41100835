package coterie

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/peer"
	"github.com/coteriedb/coterie/replica"
)

const (
	// askTimeout is how long a member that founds a cluster waits for the others
	// to say whether they know it already, and one that joins for further answers.
	askTimeout = time.Second
	// joinTimeout is how long a member that joins waits for one of the others.
	joinTimeout = 10 * time.Second
)

// plan says what this member is made of, from its configuration and from what
// the cluster says that it joins.
func (c *Config) plan(ctx context.Context) (*replica.Founding, error) {
	if err := c.resolveCluster(ctx); err != nil {
		return nil, err
	}
	configured, err := parseCluster(c.InitialCluster)
	if err != nil {
		return nil, err
	}
	if c.InitialClusterState == ClusterStateExisting {
		return c.join(ctx, configured)
	}
	f := newFounding(c.Name, configured, c.InitialClusterToken)
	return f, c.refuseRefounding(ctx, f, configured)
}

// newFounding makes a new cluster of the members in a configuration.
func newFounding(name string, configured map[string][]string, token string) *replica.Founding {
	f := &replica.Founding{}
	for n, urls := range configured {
		m := machine.Member{ID: memberID(urls, token), PeerURLs: urls}
		if n == name {
			f.MemberID = m.ID
		}
		f.Members = append(f.Members, m)
	}
	machine.SortMembers(f.Members)
	f.ClusterID = clusterID(f.Members)
	return f
}

// refuseRefounding refuses to make a member anew that the cluster already has:
// it would have forgotten what it has acknowledged and voted for.
func (c *Config) refuseRefounding(ctx context.Context, f *replica.Founding, configured map[string][]string) error {
	others := othersURLs(c.Name, configured)
	if len(others) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answers, err := peer.Fetch(ctx, others, askTimeout, c.peerDialTLS)
	if err != nil {
		return nil // nobody is there yet
	}
	for _, a := range answers {
		if a.ClusterID != f.ClusterID {
			continue // the members will tell each other
		}
		i := slices.IndexFunc(a.Members, func(m peer.FetchedMember) bool { return m.ID == f.MemberID })
		if i < 0 {
			return fmt.Errorf("member %x has been removed from the cluster: add it again, and start it with --initial-cluster-state=%s", f.MemberID, ClusterStateExisting)
		}
		if a.Members[i].Started() {
			return c.forgotten(f.MemberID)
		}
	}
	return nil
}

// forgotten refuses a member that has started before, and has nothing.
func (c *Config) forgotten(id uint64) error {
	return fmt.Errorf("member %x has already been bootstrapped, but its data directory %s is empty: bring the data back, "+
		"or remove the member, add it again and start it with --initial-cluster-state=%s", id, c.DataDir, ClusterStateExisting)
}

// join asks a running cluster for its members, of which this must be one, with
// the URLs that the configuration lists. Of several answers some may be older than
// others: a member that lags tells what it knows.
func (c *Config) join(ctx context.Context, configured map[string][]string) (*replica.Founding, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	answers, err := peer.Fetch(ctx, othersURLs(c.Name, configured), askTimeout, c.peerDialTLS)
	if err != nil {
		return nil, fmt.Errorf("cannot fetch cluster info from peer urls: %w", err)
	}
	started := map[uint64]bool{} // members that have had these URLs; one of them may have been replaced by this
	for _, a := range answers {
		for _, m := range a.Members {
			if m.Started() && sameSet(m.PeerURLs, configured[c.Name]) {
				started[m.ID] = true
			}
		}
	}
	var found *replica.Founding
	for _, a := range answers {
		f, unfit := joining(a, c.Name, configured)
		switch {
		case unfit != nil:
			err = unfit
		case found == nil || started[found.MemberID]:
			found = f
		}
	}
	switch {
	case found == nil:
		return nil, err
	case started[found.MemberID]:
		return nil, c.forgotten(found.MemberID)
	}
	return found, nil
}

// joining is what a member that joins is made of, by what another one has told.
func joining(a peer.Fetched, self string, configured map[string][]string) (*replica.Founding, error) {
	if len(a.Members) != len(configured) {
		return nil, fmt.Errorf("error validating peerURLs: member count is unequal: the cluster %x has %d members, --initial-cluster lists %d: "+
			"list them all, this one too, which must have been added to the cluster before", a.ClusterID, len(a.Members), len(configured))
	}
	f := &replica.Founding{ClusterID: a.ClusterID, Joins: true}
	for name, urls := range configured {
		i := slices.IndexFunc(a.Members, func(m peer.FetchedMember) bool { return sameSet(m.PeerURLs, urls) })
		if i < 0 {
			return nil, fmt.Errorf("error validating peerURLs: unmatched member while checking PeerURLs: "+
				"no member of the cluster %x has the peer URLs %s of %s", a.ClusterID, strings.Join(urls, ","), name)
		}
		if name == self {
			f.MemberID = a.Members[i].ID
		}
	}
	for _, m := range a.Members {
		f.Members = append(f.Members, machine.Member{ID: m.ID, PeerURLs: m.PeerURLs, IsLearner: m.IsLearner, Name: m.Name, ClientURLs: m.ClientURLs})
	}
	machine.SortMembers(f.Members)
	return f, nil
}

// othersURLs returns the peer URLs of the configured members but one.
func othersURLs(name string, configured map[string][]string) (urls []string) {
	for n, us := range configured {
		if n != name {
			urls = append(urls, us...)
		}
	}
	slices.Sort(urls)
	return urls
}

// sameSet compares URLs without regard to their order.
func sameSet(a, b []string) bool {
	return slices.Equal(normalURLs(a), normalURLs(b))
}

func normalURLs(raw []string) (urls []string) {
	for _, r := range raw {
		if u, err := url.Parse(r); err == nil {
			r = u.String()
		}
		urls = append(urls, r)
	}
	slices.Sort(urls)
	return slices.Compact(urls)
}
