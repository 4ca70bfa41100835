// Package wire encodes and decodes the messages of etcd's API: those that most
// requests are made of by hand, all others through the official codec. It knows
// the form of messages and nothing of what they mean.
//
// It promises the official codec's results. A hand-written decoder takes only
// what clients usually send: known fields, each message field once, tags as
// short as they can be. Whatever it meets beside that, be it rare or wrong, it
// leaves to the official codec, which starts over.
package wire
