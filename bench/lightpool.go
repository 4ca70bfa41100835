package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/bench/light"
)

// dialLight opens the light connections. Those of grpc-go are open already.
func (p *Pool) dialLight(ctx context.Context, t Target) error {
	options := light.Options{}
	if t.User != "" {
		token, err := p.conns[0].client.Authenticate(ctx, t.User, t.Password)
		if err != nil {
			return fmt.Errorf("authenticating %s: %w", t.User, err)
		}
		options.Metadata = map[string]string{"token": token.Token}
	}
	p.light = make([]*light.Conn, t.Conns)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for i := range p.light {
		endpoint := t.Endpoints[i%len(t.Endpoints)]
		g.Go(func() error {
			dctx, cancel := context.WithTimeout(ctx, t.DialTimeout)
			defer cancel()
			c, err := dialLightOne(dctx, endpoint, t.TLS, options)
			if err != nil {
				return fmt.Errorf("connecting to %s: %w", endpoint, err)
			}
			p.light[i] = c
			return nil
		})
	}
	return g.Wait()
}

func dialLightOne(ctx context.Context, endpoint string, cfg *tls.Config, o light.Options) (*light.Conn, error) {
	scheme, address, ok := strings.Cut(endpoint, "://")
	if !ok {
		scheme, address = "", endpoint
	}
	switch scheme {
	case "", "http":
		o.TLS = cfg
	case "https":
		if o.TLS = cfg; cfg == nil {
			o.TLS = &tls.Config{}
		}
	default:
		return nil, fmt.Errorf("the light client cannot speak %s", scheme)
	}
	return light.Dial(ctx, address, o)
}

// abort ends everything that is under way on light connections.
func (p *Pool) abort() {
	for _, c := range p.light {
		c.Abort()
	}
}

// lightConn is the light connection of client i.
func (p *Pool) lightConn(i int) *light.Conn { return p.light[i%len(p.light)] }

var errNoAnswer = errors.New("a status without an answer")

// unary is a method as the light client calls it over and over. One client uses it.
type unary struct {
	method string
	kind   int
	next   func(due time.Time) proto.Message // the request, which stays next's
	check  func(answer []byte) error         // what is wrong with an answer that came
}

// start returns the Start of a client on its connection.
func (u unary) start(conn *light.Conn) Start {
	var (
		done    func(Outcome, error)
		wrong   error
		request []byte
	)
	call := &light.Call{
		Method:  u.method,
		Message: func(b []byte) { wrong = u.check(b) },
		End: func(err error) {
			if err == nil {
				err = wrong
			}
			done(Outcome{Kind: u.kind}, err)
		},
	}
	return func(due time.Time, d func(Outcome, error)) {
		done, wrong = d, errNoAnswer
		var err error
		if request, err = (proto.MarshalOptions{}).MarshalAppend(request[:0], u.next(due)); err == nil {
			err = conn.Begin(call, request)
		}
		if err != nil {
			d(Outcome{Kind: u.kind}, err)
		}
	}
}
