package sys

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// watcher waits for the end of all watched processes with one epoll instance
// and one goroutine, started by the first watch. It lives as long as the
// program: there is nothing that could stop it earlier and no state to lose.
var watcher exitWatcher

type exitWatcher struct {
	mu   sync.Mutex
	epfd int
	on   bool
	// wait holds the channel of each watched pidfd. Descriptors are only
	// reused after remove, which runs before their close.
	wait map[int]chan struct{}
}

func (w *exitWatcher) add(fd int, ch chan struct{}) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return err
		}
		w.epfd, w.on, w.wait = epfd, true, map[int]chan struct{}{}
		go w.run()
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
	if err := unix.EpollCtl(w.epfd, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return err
	}
	w.wait[fd] = ch
	return nil
}

func (w *exitWatcher) remove(fd int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.wait[fd]; !ok {
		return
	}
	delete(w.wait, fd)
	_ = unix.EpollCtl(w.epfd, unix.EPOLL_CTL_DEL, fd, nil)
}

func (w *exitWatcher) run() {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(w.epfd, events, -1)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return
		}
		w.mu.Lock()
		for _, event := range events[:n] {
			fd := int(event.Fd)
			ch, ok := w.wait[fd]
			if !ok {
				continue
			}
			// A stale event may name a descriptor that has been reused since:
			// only one that is readable now has ended.
			fds := []unix.PollFd{{Fd: event.Fd, Events: unix.POLLIN}}
			if r, err := unix.Poll(fds, 0); err != nil || r == 0 {
				continue
			}
			close(ch)
			delete(w.wait, fd)
			_ = unix.EpollCtl(w.epfd, unix.EPOLL_CTL_DEL, fd, nil)
		}
		w.mu.Unlock()
	}
}
