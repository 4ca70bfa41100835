package bench

import (
	"context"
	"errors"
	"time"
)

// Load is one kind of work. Run calls Prepare, then Client once for each client, then the
// operations, then Close; a Load is used for one run.
type Load interface {
	Name() string
	// Kinds names the kinds of requests that the load sends, which are measured separately.
	Kinds() []string
	// Prepare brings the server into the state that the load needs. Its context ends when the run
	// is over, and with it the streams that Prepare opens.
	Prepare(ctx context.Context, pool *Pool) error
	// Client returns the operation of client i. One goroutine at a time calls it.
	Client(i int) Operation
	// Close waits for the goroutines that Prepare began and removes from the server what would
	// otherwise outlive the run. Prepare's context has ended by then.
	Close(ctx context.Context) error
}

// Operation sends one request that was due at the given time and waits for its answer.
type Operation func(ctx context.Context, due time.Time) (Outcome, error)

// Starter is a Load that the light client can put on: its requests are begun, and no goroutine waits for the answers.
type Starter interface {
	Load
	// Start takes the place of Client.
	Start(i int) Start
}

// Start begins one request that was due at the given time. It calls done once, from any goroutine, also before it returns
// if nothing could be sent. A client is not asked to begin another request before that.
type Start func(due time.Time, done func(Outcome, error))

// Outcome is what an Operation reports of itself. It counts too when the operation failed.
type Outcome struct {
	Kind int       // index in Kinds
	Done time.Time // when the answer came; zero: when the operation returned
}

// Observer is a Load that the server also pushes something to.
type Observer interface {
	Load
	// Begin starts the measuring: it concerns what is caused by requests due at from or later.
	Begin(from time.Time)
	// Drain waits until everything caused has arrived, or until ctx ends.
	Drain(ctx context.Context) Events
}

// errWrongAnswer is wrapped by an Operation whose request succeeded with an answer that cannot be.
var errWrongAnswer = errors.New("wrong answer")
