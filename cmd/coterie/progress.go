package main

import (
	"os"

	"github.com/cheggaaa/pb/v3"
)

// progress shows on standard error, if that is a terminal, how far long work has come: how many bytes of how many, or
// without a total how many of whatever it is. The returned functions tell it, and end it; they belong to one goroutine.
func progress(what string) (tell func(done, total int64), end func()) {
	const known, unknown = `{{string . "what"}} {{bar . }} {{percent . }} {{speed . }}`, `{{string . "what"}} {{counters . }} {{speed . }}`
	bar := pb.New64(0).SetWriter(os.Stderr).Set("what", what).Set(pb.CleanOnFinish, true)
	started := false
	tell = func(done, total int64) {
		if !started {
			started = true
			template := unknown
			if total > 0 {
				template = known
			}
			bar.SetTemplateString(template).Set(pb.Bytes, total > 0)
			if bar.GetBool(pb.Terminal) {
				bar.Start()
			}
		}
		bar.SetTotal(total).SetCurrent(done)
	}
	end = func() {
		if bar.IsStarted() {
			bar.Finish()
		}
	}
	return tell, end
}
