package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/arrowio/shm/handoff"
	"github.com/stokehold/stokehold/cmd/internal/report"
)

func (a *app) shm() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shm",
		Short: "Look at the shared memory of this host",
		Args:  args(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.shmList())
	return cmd
}

func (a *app) shmList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List processes, their arenas and who reads them, and memory that nobody claims",
		Args:  args(),
	}
	format := outputFlag(cmd)
	asked := cmd.Flags().Bool("json", false, "print JSON; the same as -o json")
	dir := cmd.Flags().String("dir", "", "`directory` in which processes find one another (default "+handoff.RuntimeDir()+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		sv, err := a.platform.Survey(cmd.Context(), *dir)
		if err != nil {
			return err
		}
		if *asked || out == asJSON {
			return writeJSON(a.env.Out, sv)
		}
		return a.survey(sv)
	}
	return cmd
}

// sums are the last line of the listing.
type sums struct {
	arenas, peers, leases, waiting int
	size, used, leased, unclaimed  int64
}

func (a *app) survey(sv handoff.Survey) error {
	th := a.env.theme()
	var total sums
	processes := grid{head: []string{"PID", "UP", "ARENAS", "SIZE", "USED", "HIGH WATER", "SLOTS", "LEASES", "WAITING", "PEERS"}, right: []int{0, 2, 3, 4, 5, 6, 7, 8, 9}}
	arenas := grid{head: []string{"PID", "ARENA", "SIZE", "USED", "HIGH WATER", "LARGEST FREE", "SLOTS", "LEASES", "WAITING", "HUGE PAGES"}, right: []int{0, 2, 3, 4, 5, 6, 7, 8}}
	holders := grid{head: []string{"PID", "ARENA", "HELD BY", "LEASES", "BYTES"}, right: []int{0, 3, 4}}
	peers := grid{head: []string{"PID", "READ BY", "STATE", "LEASES", "BYTES", "ARENAS", "CONNECTED", "WHY"}, right: []int{0, 1, 3, 4, 5}}
	for _, p := range sv.Processes {
		pid, m := strconv.Itoa(p.PID), p.Memory
		processes.add(pid, strings.TrimSuffix(when(p.Started, a.env.Now()), " ago"), strconv.Itoa(m.Arenas), report.Bytes(m.Capacity), report.Bytes(m.Used),
			report.Bytes(m.HighWater), strconv.Itoa(m.Slots), strconv.Itoa(m.Leases), strconv.Itoa(m.Waiting), strconv.Itoa(len(p.Peers)))
		total.arenas += m.Arenas
		total.size += m.Capacity
		total.used += m.Used
		total.leases += m.Leases
		total.waiting += m.Waiting
		for _, r := range p.Arenas {
			name := report.Short(r.ID)
			if r.Adopted {
				name += " (adopted)"
			}
			arenas.add(pid, name, report.Bytes(r.Size), report.Bytes(r.Used), report.Bytes(r.HighWater), report.Bytes(r.LargestFree),
				strconv.Itoa(r.Slots), strconv.Itoa(r.Leases), strconv.Itoa(r.Waiting), report.Clean(r.HugePages))
			for _, h := range r.Holders {
				holders.add(pid, report.Short(r.ID), report.Clean(h.Owner), strconv.Itoa(h.Leases), report.Bytes(h.Bytes))
			}
		}
		if more := m.Arenas - len(p.Arenas); more > 0 {
			arenas.add(pid, fmt.Sprintf("… %d more", more))
		}
		for _, q := range p.Peers {
			state := string(q.State)
			switch q.State {
			case handoff.Alive:
				state = th.Good.Render(state)
			case handoff.Stalled, handoff.Draining:
				state = th.Bad.Render(state)
			case handoff.Greeting: // as it is
			}
			peers.add(pid, strconv.Itoa(q.PID), state, strconv.Itoa(q.Leases), report.Bytes(q.Bytes), strconv.Itoa(q.Arenas),
				when(q.Connected, a.env.Now()), report.Clean(q.Reason))
			total.peers++
			total.leased += q.Bytes
		}
	}
	unclaimed := grid{head: []string{"UNCLAIMED", "BYTES", "INODE", "HELD BY"}, right: []int{1, 2}}
	for _, o := range sv.Unclaimed {
		var pids []string
		for _, pid := range o.PIDs {
			pids = append(pids, strconv.Itoa(pid))
		}
		unclaimed.add(th.Warn.Render(report.Clean(o.Name)), report.Bytes(o.Bytes), strconv.FormatUint(o.Inode, 10), strings.Join(pids, " "))
		total.unclaimed += o.Bytes
	}
	silent := grid{head: []string{"SILENT", "SOCKET", "WHY"}, right: []int{0}}
	for _, s := range sv.Silent {
		silent.add(th.Bad.Render(strconv.Itoa(s.PID)), s.Socket, report.Clean(s.Error))
	}
	for _, g := range []grid{processes, arenas, holders, peers, silent, unclaimed} {
		if len(g.rows) == 0 {
			continue
		}
		if err := g.write(a.env); err != nil {
			return err
		}
		fmt.Fprintln(a.env.Out)
	}
	fmt.Fprintf(a.env.Out, "%s, %s: %s of %s in use, %s, %s waiting; %s, %s leased to them; %s unclaimed, %s\n",
		plural(len(sv.Processes)+len(sv.Silent), "process", "processes"), plural(total.arenas, "arena", "arenas"),
		report.Bytes(total.used), report.Bytes(total.size), plural(total.leases, "lease", "leases"), plural(total.waiting, "loan", "loans"),
		plural(total.peers, "peer", "peers"), report.Bytes(total.leased), plural(len(sv.Unclaimed), "region", "regions"), report.Bytes(total.unclaimed))
	return nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return report.Count(int64(n)) + " " + many
}
