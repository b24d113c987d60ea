package proof

import "golang.org/x/mod/sumdb/note"

// SignText signs any text as if it were a checkpoint.
func SignText(text string, keys *Keys) ([]byte, error) {
	return note.Sign(&note.Note{Text: text}, keys.signers...)
}
