package flights

import (
	"embed"
	"errors"
	"io/fs"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/deploy"
	"github.com/stokehold/stokehold/stages/drift"
	"github.com/stokehold/stokehold/stages/evaluate"
	"github.com/stokehold/stokehold/stages/ingest"
	"github.com/stokehold/stokehold/stages/train"
	"github.com/stokehold/stokehold/workflows"
)

// Names of the pipelines and of the stages that run in a child process.
const (
	TrainPipeline   = "flights-train"
	ScorePipeline   = "flights-score"
	MonitorPipeline = "flights-monitor"
	FeatureStage    = "features"
)

// Licence is the label of the data: a work of the US government, in the public domain.
const Licence = "licence:public-domain"

//go:embed policies/*.yaml
var policies embed.FS

// Policies are the example's governance rules, as YAML files.
func Policies() fs.FS {
	sub, err := fs.Sub(policies, "policies")
	if err != nil {
		panic(err) // cannot: the directory is embedded
	}
	return sub
}

//go:embed tiers/*.yaml
var tierPolicies embed.FS

// TierPolicies say where the example's batches belong, as YAML files.
func TierPolicies() fs.FS {
	sub, err := fs.Sub(tierPolicies, "tiers")
	if err != nil {
		panic(err) // cannot: the directory is embedded
	}
	return sub
}

// Late is the target: a flight that arrives more than LateMinutes late.
func Late() train.Target { return train.Target{Column: "delay", Above: LateMinutes} }

// Stages are the implementations that the pipelines share, so that a program may
// replace one (another detector, another trainer) before it builds them.
type Stages struct {
	Schedule, Labels *ingest.Stage
	// FeaturesWorker names the worker of another program that makes the features;
	// "": a child process of this one does.
	FeaturesWorker string
	Train          *train.Stage
	Evaluate       *evaluate.Stage
	Deploy         *deploy.Stage
	Score          *Score
	Monitor        *drift.Monitor
}

// NewStages returns the example's stages for data d, scored by client.
func NewStages(d *Data, client Predictor) *Stages {
	return &Stages{
		Schedule: &ingest.Stage{Source: d.Source, Columns: []string{"date", "distance", "origin", "destination"}, Window: upToWeek},
		Labels:   &ingest.Stage{Source: d.Source, Columns: []string{"delay"}, Window: upToWeek},
		Train: &train.Stage{
			Model: Model, Features: Features, Labels: Labels, Target: Late(), Window: trailing, Holdout: thisWeek,
		},
		Evaluate: &evaluate.Stage{Features: Features, Labels: Labels, Target: Late(), Window: thisWeek},
		Deploy:   &deploy.Stage{Features: Features, Labels: Labels, Target: Late(), Window: thisWeek, At: d.at},
		Score:    &Score{Client: client, Data: d},
		Monitor: &drift.Monitor{
			Model: Model, Predictions: Predictions, Features: Features, Labels: Labels, History: Monitor, Target: Late(),
			Key: weekOf, Offset: FirstLive, At: d.at, ReportType: TypeWeekClosed,
			Params: func(r drift.Report) map[string]any { return map[string]any{"week": r.Key} },
		},
	}
}

// ChildStages are the stages that run in a child process, by PIPELINE/STAGE. The
// child needs neither the data nor a client.
func ChildStages() map[string]stages.Stage {
	return map[string]stages.Stage{
		TrainPipeline + "/" + FeatureStage: featuresToTrain(),
		ScorePipeline + "/" + FeatureStage: featuresToScore(),
	}
}

func (s *Stages) whereFeatures() workflows.Option {
	if s.FeaturesWorker != "" {
		return workflows.InWorker(s.FeaturesWorker)
	}
	return workflows.InChildProcess()
}

func featuresToTrain() stages.Stage { return MakeFeatures{Window: trailingAndThis} }
func featuresToScore() stages.Stage { return MakeFeatures{Window: thisWeek} }

// licensed says under what terms the data come (data/README.md). What is made of them, the
// features, the predictions and the model, says so too.
func licensed() workflows.Option { return workflows.Labels(Licence) }

// Pipelines builds the three pipelines of the loop.
//
// flights-train makes a model and asks for its promotion; a person starts it the
// first time, with {"week": 6}, and drift afterwards. flights-score predicts a
// week whose flights have left. flights-monitor compares the predictions with
// what happened.
func Pipelines(s *Stages) ([]*workflows.Definition, error) {
	var all []*workflows.Definition
	var faults []error
	for _, p := range []*workflows.Pipeline{trainPipeline(s), scorePipeline(s), monitorPipeline(s)} {
		d, err := p.Build()
		faults = append(faults, err)
		all = append(all, d)
	}
	return all, errors.Join(faults...)
}

func trainPipeline(s *Stages) *workflows.Pipeline {
	p := workflows.New(TrainPipeline, "Learn which flights will be late, and ask to serve the model")
	schedule := p.Ingest("schedule", s.Schedule, workflows.Into(Schedule), licensed())
	labels := p.Ingest("labels", s.Labels, workflows.Into(Labels), licensed())
	features := p.Preprocess(FeatureStage, schedule, featuresToTrain(),
		workflows.Reads(labels), workflows.Into(Features), s.whereFeatures())
	model := p.Train("train", features, s.Train, workflows.Reads(labels), workflows.Named(Model))
	scores := p.Evaluate("evaluate", model, features, s.Evaluate, workflows.Reads(labels))
	p.Deploy("deploy", model, scores, s.Deploy, workflows.Reads(features, labels))
	p.On(workflows.Trigger{
		Name: "drift", Types: []string{events.TypeDriftDetected}, When: "data.model == '" + Model + "'",
		// One retraining a week of event time: labels come weekly, so a second one
		// would see nothing new.
		Cooldown: Week - Week/7, EventTime: true,
	})
	return p
}

func scorePipeline(s *Stages) *workflows.Pipeline {
	p := workflows.New(ScorePipeline, "Predict a week's flights through the serving endpoint")
	schedule := p.Ingest("schedule", s.Schedule, workflows.Into(Schedule), licensed())
	features := p.Preprocess(FeatureStage, schedule, featuresToScore(),
		workflows.Reads(p.Source(Labels)), workflows.Into(Features), s.whereFeatures())
	p.Preprocess("score", features, s.Score, workflows.Into(Predictions))
	p.On(workflows.Trigger{Name: "data", Types: []string{TypeDataArrived}, Key: "string(data.week)"})
	return p
}

func monitorPipeline(s *Stages) *workflows.Pipeline {
	p := workflows.New(MonitorPipeline, "Compare a week's predictions with what happened")
	labels := p.Ingest("labels", s.Labels, workflows.Into(Labels), licensed())
	p.Monitor("monitor", labels, s.Monitor,
		workflows.Reads(p.Source(Predictions), p.Source(Features), p.Source(Monitor)), workflows.Into(Monitor))
	p.On(workflows.Trigger{Name: "labels", Types: []string{TypeLabelsArrived}, Key: "string(data.week)"})
	return p
}
