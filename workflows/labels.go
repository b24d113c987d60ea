package workflows

import (
	"fmt"

	"github.com/stokehold/stokehold/governance/label"
)

// Labels declares what the data are that a stage makes, such as licence:cc-by-4.0 or
// residency:eu, beside the labels of all that it reads, which it has in any case
// (package governance/label).
func Labels(labels ...string) Option {
	return func(o *stageOptions) { o.stage.Labels = append(o.stage.Labels, labels...) }
}

// Declassifies lets a stage make something without labels that its inputs have, since it
// takes away what they are about: a name such as pii for all labels of that name, or one
// label. reason is for the audit log. Governance is asked with label.declassified, and
// denies unless a policy names that type.
func Declassifies(reason string, labels ...string) Option {
	return func(o *stageOptions) {
		if o.stage.Declassify != nil {
			o.fault("declassifies twice", "name all labels in one Declassifies")
			return
		}
		o.stage.Declassify = &label.Declassification{Labels: labels, Reason: reason}
	}
}

// labels checks what a stage says of labels.
func (c *check) labels(s *StageDef) {
	if len(s.Labels) == 0 && s.Declassify == nil {
		return
	}
	sig, ok := signatureOf(s.Kind)
	if ok && sig.makes != aDataset && sig.makes != aModel && s.Into == "" {
		c.add(s.Name, fmt.Sprintf("declares labels or takes some off, and a stage of kind %s makes neither data nor a model", s.Kind), "say it where data or a model are made")
	}
	if _, err := label.Parse(s.Labels); err != nil {
		c.add(s.Name, err.Error(), "correct Labels")
	}
	if s.Declassify != nil {
		if err := s.Declassify.Check(); err != nil {
			c.add(s.Name, err.Error(), "correct Declassifies")
		}
	}
}
