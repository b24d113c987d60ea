// Package celgo compiles the common part of checked CEL expressions to Go
// closures that evaluate without allocating, many times as fast as cel-go's
// interpreter: comparisons, `in` lists, boolean operators, conditionals,
// arithmetic, field selection with has() and optional access, and a few string
// functions.
//
// It is meant to run before cel-go and never instead of it. A closure gives a
// value or gives up; it has no errors of its own. It gives up where CEL has an
// error, and also where a value at run time is of a kind that it does not know,
// and the caller then lets cel-go evaluate the same expression. So error messages are
// cel-go's, and what must hold here is one thing: where a closure gives a value,
// cel-go gives the same one. Compile refuses expressions with anything else in
// them, such as loops, so that a closure takes time in proportion to the
// expression's nodes and to the strings and lists that they name.
package celgo
