package policy

import (
	"container/list"
	"time"
)

// cache is what a remote decision point said, by question. It is bounded, and
// so that one tenant with very many questions does not push out the answers to
// the others, the tenant with the most entries gives one up, its least recently
// used. The zero cache is not usable. The caller locks.
type cache struct {
	limit   int // entries
	entries int
	tenants map[string]*tenant
}

// tenant is what is known of one tenant's questions.
type tenant struct {
	entries  map[Input]*list.Element
	recent   list.List // of *entry, the last used one first
	inFlight int       // questions under way
	failed   time.Time // when the last question went wrong; zero if it did not
}

// entry is one answer. Its question is the whole of what the decision point was
// told, so that it is never taken for the answer to another.
type entry struct {
	question Input
	decision Decision
	asked    time.Time // when the question was put: what the decision is as old as
	expires  time.Time // it is used for anything until then
}

func newCache(limit int) *cache {
	return &cache{limit: limit, tenants: make(map[string]*tenant)}
}

// get returns the answer to a question, nil if there is none.
func (c *cache) get(q Input) *entry {
	t := c.tenants[q.Tenant]
	if t == nil {
		return nil
	}
	e := t.entries[q]
	if e == nil {
		return nil
	}
	t.recent.MoveToFront(e)
	return e.Value.(*entry)
}

// tenant returns what is known of a tenant, for notes.
func (c *cache) tenant(name string) *tenant {
	if t := c.tenants[name]; t != nil {
		return t
	}
	if len(c.tenants) >= c.limit {
		for name, t := range c.tenants {
			if t.recent.Len() == 0 && t.inFlight == 0 {
				delete(c.tenants, name)
			}
		}
	}
	t := &tenant{entries: make(map[Input]*list.Element)}
	c.tenants[name] = t
	return t
}

func (c *cache) put(e *entry) {
	t := c.tenant(e.question.Tenant)
	if old := t.entries[e.question]; old != nil {
		old.Value = e
		t.recent.MoveToFront(old)
		return
	}
	t.entries[e.question] = t.recent.PushFront(e)
	c.entries++
	if c.entries > c.limit {
		c.evict()
	}
}

func (c *cache) evict() {
	var most *tenant
	var owner string
	for name, t := range c.tenants {
		if most == nil || t.recent.Len() > most.recent.Len() {
			most, owner = t, name
		}
	}
	last := most.recent.Remove(most.recent.Back()).(*entry)
	delete(most.entries, last.question)
	c.entries--
	if most.recent.Len() == 0 && most.inFlight == 0 {
		delete(c.tenants, owner)
	}
}

// expire makes every answer one of which only the last known is left.
func (c *cache) expire(now time.Time) {
	for _, t := range c.tenants {
		for e := t.recent.Front(); e != nil; e = e.Next() {
			if known := e.Value.(*entry); now.Before(known.expires) {
				known.expires = now
			}
		}
	}
}
