// Sockets and who is told that they are ready. Knows epoll and TCP; nothing of what goes over it.
#pragma once

#include <arpa/inet.h>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <memory>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <vector>

inline double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

[[noreturn]] inline void fail(const std::string &what) {
    std::fprintf(stderr, "stand_in: %s\n", what.c_str());
    std::exit(1);
}

class Watched {
  public:
    virtual void ready(uint32_t events) = 0;
    virtual ~Watched() = default;
};

class Loop {
  public:
    void watch(int fd, Watched *watched, uint32_t events, bool is_new) {
        epoll_event event{};
        event.events = events;
        event.data.ptr = watched;
        if (epoll_ctl(epoll_, is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event)) fail("epoll_ctl");
    }

    // Closed at once; freed when no event of this round can name it any more.
    void bury(std::unique_ptr<Watched> watched) { graves_.push_back(std::move(watched)); }

    void run() {
        epoll_event events[256];
        for (;;) {
            int count = epoll_wait(epoll_, events, 256, -1);
            for (int i = 0; i < count; ++i) static_cast<Watched *>(events[i].data.ptr)->ready(events[i].events);
            graves_.clear();
        }
    }

  private:
    int epoll_ = epoll_create1(0);
    std::vector<std::unique_ptr<Watched>> graves_;
};

inline sockaddr_in local(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(uint16_t(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

// A socket that never blocks, with what it could not send yet.
class Socket : public Watched {
  public:
    Socket(Loop &loop, int fd) : loop_(loop), fd_(fd) {
        int one = 1;
        setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        loop_.watch(fd_, this, EPOLLIN, true);
    }
    ~Socket() override { close(); }

    // The bytes must stay where they are until they are sent, if `is_lasting`.
    void send(const std::string &data, bool is_lasting = false) {
        if (fd_ < 0) return;
        if (is_lasting && waiting_.empty()) {
            lasting_ = &data;
            sent_ = 0;
        } else {
            waiting_ += data;
        }
        flush();
    }
    bool is_blocked() const { return lasting_ || !waiting_.empty(); }

    void ready(uint32_t events) override {
        if (events & EPOLLOUT) flush();
        if (fd_ >= 0 && !is_blocked()) writable();
        if (fd_ >= 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) read();
    }

  protected:
    virtual void received(const char *data, size_t size) = 0;
    virtual void ended() = 0;  // the other side has left
    virtual void writable() {}

    void close() {
        if (fd_ >= 0) ::close(fd_);
        fd_ = -1;
    }
    bool is_closed() const { return fd_ < 0; }

  private:
    Loop &loop_;
    int fd_;
    const std::string *lasting_ = nullptr;
    size_t sent_ = 0;
    std::string waiting_;
    bool wants_out_ = false;

    void read() {
        static char buffer[1 << 18];
        ssize_t size = ::recv(fd_, buffer, sizeof buffer, 0);
        if (size > 0) return received(buffer, size_t(size));
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
        ended();
    }

    void flush() {
        while (is_blocked()) {
            const std::string &data = lasting_ ? *lasting_ : waiting_;
            ssize_t size = ::send(fd_, data.data() + sent_, data.size() - sent_, MSG_NOSIGNAL);
            if (size < 0) break;  // EAGAIN; any other error comes back as an event
            sent_ += size_t(size);
            if (sent_ < data.size()) continue;
            if (lasting_)
                lasting_ = nullptr;
            else
                waiting_.clear();
            sent_ = 0;
        }
        if (is_blocked() != wants_out_) {
            wants_out_ = !wants_out_;
            loop_.watch(fd_, this, wants_out_ ? EPOLLIN | EPOLLOUT : EPOLLIN, false);
        }
    }
};
