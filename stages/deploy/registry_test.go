package deploy_test

import (
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/deploy"
	"github.com/stokehold/stokehold/stages/stagetest"
	"github.com/stokehold/stokehold/stages/train"
)

// Both registries serve the stages and the server.
var (
	_ train.Registry = (*models.Registry)(nil)
	_ deploy.Source  = (*models.Registry)(nil)
	_ train.Registry = (*stagetest.Registry)(nil)
	_ deploy.Source  = (*stagetest.Registry)(nil)
)
