package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// FetchedMember is a member as a running cluster tells of it.
type FetchedMember struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner"`
	Name       string   `json:"name"`
	ClientURLs []string `json:"clientURLs"`
}

// maxMembers bounds the list of members in bytes.
const maxMembers = 1 << 20

// Started tells whether the member has been there: then it has told its name, and its client URLs if it has any.
func (m *FetchedMember) Started() bool { return m.Name != "" || len(m.ClientURLs) > 0 }

// Fetched is what a member of a running cluster has answered.
type Fetched struct {
	ClusterID uint64
	Members   []FetchedMember
}

// Fetch asks the peer URLs of a running cluster, all at once, who its members are. It returns the answers, of which one may be older than
// another, in the order of the URLs: all that have come when each has answered or failed, or grace after the first one, or at the end of the
// context. It is an error if there are none.
func Fetch(ctx context.Context, urls []string, grace time.Duration, dialTLS func() (*tls.Config, error)) ([]Fetched, error) {
	if len(urls) == 0 {
		return nil, errors.New("no peer URL to ask for the members")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := dialer{dialTLS, connectTimeout, DefaultReadTimeout, DefaultWriteTimeout}
	client := d.client(ctx)
	defer client.CloseIdleConnections()
	answers, errs := make([]Fetched, len(urls)), make([]error, len(urls))
	var group sync.WaitGroup // each ends with ctx
	for i, raw := range urls {
		group.Go(func() {
			if answers[i], errs[i] = fetch(ctx, client, raw); errs[i] != nil {
				errs[i] = fmt.Errorf("ask %s for the members: %w", raw, errs[i])
				return
			}
			time.AfterFunc(grace, cancel)
		})
	}
	group.Wait()
	var came []Fetched
	for i, a := range answers {
		if errs[i] == nil {
			came = append(came, a)
		}
	}
	if len(came) == 0 {
		return nil, errors.Join(errs...)
	}
	return came, nil
}

func fetch(ctx context.Context, client *http.Transport, raw string) (Fetched, error) {
	e, err := parseEndpoint(raw)
	if err != nil {
		return Fetched{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultReadTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url("/members").String(), nil)
	if err != nil {
		return Fetched{}, err
	}
	res, err := client.RoundTrip(req)
	if err != nil {
		return Fetched{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		no, _ := refusedBy(res, 0)
		return Fetched{}, no
	}
	body, err := readBounded(res.Body, maxMembers)
	if err != nil {
		return Fetched{}, err
	}
	return decodeMembers(res.Header.Get("X-Etcd-Cluster-ID"), body)
}

func decodeMembers(cluster string, body []byte) (Fetched, error) {
	id, err := strconv.ParseUint(cluster, 16, 64)
	if err != nil {
		return Fetched{}, fmt.Errorf("the answer names no cluster: X-Etcd-Cluster-ID is %q", truncate(cluster, maxHeaderText))
	}
	var members []FetchedMember
	if err := json.Unmarshal(body, &members); err != nil {
		return Fetched{}, fmt.Errorf("decode the members: %w", err)
	}
	if len(members) == 0 {
		return Fetched{}, errors.New("the answer names no members")
	}
	return Fetched{id, members}, nil
}
