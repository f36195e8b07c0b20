package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/kedacore/keda/v2/pkg/scalers"
	"github.com/kedacore/keda/v2/pkg/scalers/scalersconfig"
	"google.golang.org/grpc/status"
	v2 "k8s.io/api/autoscaling/v2"
)

// helper asks whoever is at the other end of stdin and stdout to do something to the world.
type helper struct {
	in  *bufio.Scanner
	out io.Writer
}

func newHelper(in io.Reader, out io.Writer) *helper {
	return &helper{in: bufio.NewScanner(in), out: out}
}

func (h *helper) ask(format string, args ...any) (string, error) {
	request := fmt.Sprintf(format, args...)
	fmt.Fprintf(h.out, "ask %s\n", request)
	if !h.in.Scan() {
		return "", fmt.Errorf("nobody answered %q", request)
	}
	answer := strings.TrimSpace(h.in.Text())
	if rest, ok := strings.CutPrefix(answer, "ok"); ok {
		return strings.TrimSpace(rest), nil
	}
	return "", fmt.Errorf("%q could not be done: %s", request, answer)
}

// session is what every check gets: where the scaler is, what a trigger says, and the helper.
type session struct {
	*helper
	version    string
	check      string // the running check's name; queues and objects are named after it
	address    string
	metadata   map[string]string
	prometheus string
	tlsAddress string
	caFile     string
	certFile   string
	keyFile    string
}

// queue creates an empty queue of this check's own and returns its URL.
func (s *session) queue(suffix string) (string, error) {
	return s.ask("create %s", s.object(suffix))
}

// object is a name that no other check and no other KEDA version uses.
func (s *session) object(suffix string) string {
	name := "keda-" + strings.NewReplacer(".", "-", "v", "").Replace(s.version) + "-" + s.check
	if suffix != "" {
		name += "-" + suffix
	}
	return name
}

// overriding is metadata with some keys replaced; an empty value removes the key.
func overriding(metadata map[string]string, changes map[string]string) map[string]string {
	result := maps.Clone(metadata)
	for key, value := range changes {
		if value == "" {
			delete(result, key)
		} else {
			result[key] = value
		}
	}
	return result
}

// config is what KEDA would build the scaler from: the trigger of this check's ScaledObject on an SQS queue.
func (s *session) config(queueURL string, changes map[string]string) *scalersconfig.ScalerConfig {
	metadata := overriding(s.metadata, map[string]string{
		"scalerAddress": s.address,
		"queueURL":      queueURL,
		"sampleSeconds": "0.5", // the default of 2 s would only make the checks slower
	})
	return &scalersconfig.ScalerConfig{
		ScalableObjectName:      s.object(""),
		ScalableObjectNamespace: "team-a",
		ScalableObjectType:      "ScaledObject",
		TriggerMetadata:         overriding(metadata, changes),
		ResolvedEnv:             map[string]string{},
		AuthParams:              map[string]string{},
		GlobalHTTPTimeout:       3 * time.Second, // KEDA's default
	}
}

// polled is KEDA's external scaler, closed at the end of the check.
func polled(ctx context.Context, config *scalersconfig.ScalerConfig) (scalers.Scaler, error) {
	scaler, err := scalers.NewExternalScaler(config)
	if err != nil {
		return nil, fmt.Errorf("KEDA does not build its external scaler: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = scaler.Close(context.Background()) })
	return scaler, nil
}

// spec is the single metric spec that a poll or a reconcile gets, or the reason in KEDA's log.
func spec(ctx context.Context, config *scalersconfig.ScalerConfig, scaler scalers.Scaler) (*v2.ExternalMetricSource, error) {
	mark := recorded.mark()
	specs := scaler.GetMetricSpecForScaling(ctx)
	if len(specs) == 0 {
		if errs := recorded.errors(config, mark); len(errs) > 0 {
			return nil, errs[0]
		}
		return nil, errors.New("KEDA got no metric spec and logged no error")
	}
	if len(specs) > 1 {
		return nil, fmt.Errorf("KEDA got %d metric specs, expected one", len(specs))
	}
	return specs[0].External, nil
}

// reading is what one evaluation by KEDA's poll loop yields.
type reading struct {
	value  float64
	active bool
}

func (r reading) String() string {
	if r.active {
		return fmt.Sprintf("%g and active", r.value)
	}
	return fmt.Sprintf("%g and inactive", r.value)
}

// poll is what KEDA does every pollingInterval: the spec, then its metric, then the activity.
func poll(ctx context.Context, config *scalersconfig.ScalerConfig, scaler scalers.Scaler) (reading, error) {
	metric, err := spec(ctx, config, scaler)
	if err != nil {
		return reading{}, err
	}
	values, active, err := scaler.GetMetricsAndActivity(ctx, metric.Metric.Name)
	if err != nil {
		return reading{}, err
	}
	if len(values) != 1 {
		return reading{}, fmt.Errorf("KEDA got %d values for %s, expected one", len(values), metric.Metric.Name)
	}
	return reading{value: values[0].Value.AsApproximateFloat64(), active: active}, nil
}

// pollUntil polls until KEDA sees `expected`.
func pollUntil(ctx context.Context, config *scalersconfig.ScalerConfig, scaler scalers.Scaler, expected reading) error {
	last := "nothing yet"
	return until(ctx, 20*time.Second, func() (bool, string) {
		seen, err := poll(ctx, config, scaler)
		if err != nil {
			last = err.Error()
		} else {
			last = seen.String()
		}
		return err == nil && seen == expected, fmt.Sprintf("KEDA sees %s, expected %s", last, expected)
	})
}

// until asks again and again; the error is the last explanation.
func until(ctx context.Context, patience time.Duration, done func() (bool, string)) error {
	deadline := time.Now().Add(patience)
	for {
		ok, explanation := done()
		if ok {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("after %v: %s", patience, explanation)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// pushed is KEDA's external-push scaler while its Run is running.
type pushed struct {
	scaler scalers.PushScaler
	config *scalersconfig.ScalerConfig
	mark   int // recorded entries from here on are of this run
	stop   context.CancelFunc

	mutex  sync.Mutex
	events []event
	closed bool
}

type event struct {
	at     time.Time
	active bool
}

// push starts Run as KEDA's scale handler does, and reads its channel until the check ends.
func push(ctx context.Context, config *scalersconfig.ScalerConfig) (*pushed, error) {
	scaler, err := scalers.NewExternalPushScaler(config)
	if err != nil {
		return nil, fmt.Errorf("KEDA does not build its external-push scaler: %w", err)
	}
	running, stop := context.WithCancel(ctx)
	p := &pushed{scaler: scaler, config: config, mark: recorded.mark(), stop: stop}
	active := make(chan bool)
	go scaler.Run(running, active)
	go func() {
		for value := range active {
			p.mutex.Lock()
			p.events = append(p.events, event{at: time.Now(), active: value})
			p.mutex.Unlock()
		}
		p.mutex.Lock()
		p.closed = true
		p.mutex.Unlock()
		_ = scaler.Close(context.Background())
	}()
	return p, nil
}

// since is what came through Run's channel from `from` on.
func (p *pushed) since(from time.Time) []event {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	var result []event
	for _, one := range p.events {
		if !one.at.Before(from) {
			result = append(result, one)
		}
	}
	return result
}

// waitFor waits for `active` on Run's channel from `from` on and returns how long after `from` it came.
func (p *pushed) waitFor(ctx context.Context, from time.Time, active bool, patience time.Duration) (time.Duration, error) {
	var took time.Duration
	err := until(ctx, patience, func() (bool, string) {
		seen := p.since(from)
		for _, one := range seen {
			if one.active == active {
				took = one.at.Sub(from)
				return true, ""
			}
		}
		return false, fmt.Sprintf("Run's channel gave no %t (%d other messages)%s", active, len(seen), p.complaints())
	})
	return took, err
}

// complaints is what KEDA logged as errors about this scaler, in words to append to a message.
func (p *pushed) complaints() string {
	errs := recorded.errors(p.config, p.mark)
	if len(errs) == 0 {
		return ""
	}
	return fmt.Sprintf("; KEDA logged %d errors, the last: %v", len(errs), errs[len(errs)-1])
}

// recorder keeps what KEDA logs: GetMetricSpecForScaling and Run return no error, they log it.
type recorder struct {
	mutex   sync.Mutex
	entries []entry
}

type entry struct {
	at      time.Time
	object  string // namespace/name that KEDA's logger carries
	message string
	values  string
	err     error
}

var recorded = &recorder{}

func (r *recorder) logger() logr.Logger { return logr.New(&sink{recorder: r}) }

func (r *recorder) mark() int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return len(r.entries)
}

// about is what KEDA logged about this object since `mark`.
func (r *recorder) about(config *scalersconfig.ScalerConfig, mark int) []entry {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	var result []entry
	for _, one := range r.entries[mark:] {
		if one.object == config.ScalableObjectNamespace+"/"+config.ScalableObjectName {
			result = append(result, one)
		}
	}
	return result
}

func (r *recorder) errors(config *scalersconfig.ScalerConfig, mark int) []error {
	var result []error
	for _, one := range r.about(config, mark) {
		if one.err != nil {
			result = append(result, one.err)
		}
	}
	return result
}

// sink is one logger of KEDA's, with the object it was made for.
type sink struct {
	recorder        *recorder
	namespace, name string
}

func (s *sink) Init(logr.RuntimeInfo) {}

func (s *sink) Enabled(int) bool { return true } // KEDA says at level 1 that it will reconnect

func (s *sink) Info(_ int, message string, values ...any) { s.add(nil, message, values) }

func (s *sink) Error(err error, message string, values ...any) {
	if err == nil {
		err = errors.New(message)
	}
	s.add(err, message, values)
}

func (s *sink) add(err error, message string, values []any) {
	s.recorder.mutex.Lock()
	defer s.recorder.mutex.Unlock()
	s.recorder.entries = append(s.recorder.entries, entry{
		at: time.Now(), object: s.namespace + "/" + s.name, message: message, values: fmt.Sprint(values...), err: err,
	})
}

func (s *sink) WithValues(values ...any) logr.LogSink {
	derived := *s
	for i := 0; i+1 < len(values); i += 2 {
		switch values[i] {
		case "namespace":
			derived.namespace = fmt.Sprint(values[i+1])
		case "name":
			derived.name = fmt.Sprint(values[i+1])
		}
	}
	return &derived
}

func (s *sink) WithName(string) logr.LogSink { return s }

// refused says whether `err` is the gRPC status `code` with every one of `words` in its message.
func refused(err error, code string, words ...string) error {
	if err == nil {
		return fmt.Errorf("no error, expected %s", code)
	}
	if got := status.Code(err).String(); got != code {
		return fmt.Errorf("%s (%s), expected %s", got, status.Convert(err).Message(), code)
	}
	for _, word := range words {
		if !strings.Contains(status.Convert(err).Message(), word) {
			return fmt.Errorf("the message does not name %q: %s", word, status.Convert(err).Message())
		}
	}
	return nil
}

// told is an error's message, shortened for one line.
func told(err error) string {
	message := strings.Join(strings.Fields(status.Convert(err).Message()), " ")
	if len(message) > 160 {
		message = message[:157] + "..."
	}
	return fmt.Sprintf("%s, %s", status.Code(err), message)
}

func readFile(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("unreadable: %v", err) // KEDA will refuse it, and say so
	}
	return string(text)
}
