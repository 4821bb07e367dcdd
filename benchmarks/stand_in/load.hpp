// The clients: requests at a rate, as many as go, or streams, to one port; one measurement at a time.
#pragma once

#include <sys/timerfd.h>

#include "engine.hpp"

struct Measured {
    std::vector<double> latencies;  // seconds from when a request was due to its answer's last byte
    long done = 0, frames = 0, errors = 0;
    double seconds = 0;
    std::string first_error;
};

class Load;

class Client : public Socket {  // a connection of ours to the engine or to a gateway
  public:
    Client(Load &load, Loop &loop, int fd) : Socket(loop, fd), load_(load) {}
    void ask(const std::string &request, double due) {
        due_ = due;
        is_asking_ = true;
        send(request, true);
    }

  protected:
    void received(const char *data, size_t size) override;
    void ended() override;

  private:
    Load &load_;
    Reader answer_;
    std::string said_;  // the beginning of an answer that is an error
    std::string tail_;
    double due_ = 0;
    int number_ = -1;
    bool is_asking_ = false, is_streaming_ = false;

    int marks(const char *data, size_t size);
};

struct Task {
    std::string kind;  // rate, flat or frames
    int port, clients;
    double rate, seconds;
    std::string request;
};

class Load : public Watched {
  public:
    Load(Loop &loop, Engine &engine) : loop_(loop), engine_(engine) {
        timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        loop_.watch(timer_, this, EPOLLIN, true);
    }

    void begin(const Task &task) {
        task_ = task;
        found_ = Measured();
        sent_ = 0;
        begun_ = counts_from_ = now();
        engine_.is_ending = false;
        engine_.requests = engine_.frames = 0;
        streaming_ = 0;
        if (task.kind == "rate") {
            counts_from_ += WARM_S;
            set_timer(begun_);
        } else {
            counts_from_ += task.kind == "flat" ? WARM_S : PATIENCE_S;  // streams count when all have begun
            for (int i = 0; i < task.clients; ++i) open()->ask(task_.request, now());
            set_timer(counts_from_ + task.seconds);
        }
    }

    void ready(uint32_t) override {
        uint64_t times;
        if (::read(timer_, &times, sizeof times) < 0) return;
        if (task_.kind == "rate")
            on_tick();
        else
            stop();
    }

    void answered(Client *client, double due, const Reader &answer, const std::string &said) {
        double at = now();
        if (answer.status() != 200) {
            error("status " + std::to_string(answer.status()) + ": " + said);
        } else if (due >= counts_from_ && !is_over_) {
            found_.latencies.push_back(at - due);
            ++found_.done;
        }
        bool closes = strncasecmp(answer.header("connection").c_str(), "close", 5) == 0;
        if (task_.kind == "flat" && !is_over_) {
            if (closes) drop(client), client = open();
            return client->ask(task_.request, at);
        }
        if (closes || is_over_ || task_.kind == "frames")
            drop(client);
        else
            idle_.push_back(client);
        if (task_.kind == "rate" && sent_ >= total() && !is_over_ && idle_.size() == open_.size()) finish();
        if (is_over_ && open_.empty()) finish();
    }

    void framed(int number, int count, bool is_first) {
        double at = now();
        streaming_ += is_first;
        if (is_first && streaming_ == task_.clients && task_.kind == "frames") {
            counts_from_ = at + WARM_S;
            set_timer(counts_from_ + task_.seconds);
        }
        if (at >= counts_from_ && !is_over_) found_.frames += count;
        engine_.arrived(number, count);
    }

    void broke(Client *client, bool was_asking) {
        idle_.erase(std::remove(idle_.begin(), idle_.end(), client), idle_.end());
        drop(client);
        if (was_asking) error("the connection was closed before the answer was complete");
        if (is_over_ && open_.empty()) finish();
    }

  private:
    static constexpr double WARM_S = 0.3, PATIENCE_S = 20;
    Loop &loop_;
    Engine &engine_;
    Task task_;
    Measured found_;
    std::map<Client *, std::unique_ptr<Client>> open_;
    std::vector<Client *> idle_;
    int timer_;
    long sent_ = 0;
    int streaming_ = 0;  // streams that have begun
    double begun_ = 0, counts_from_ = 0;
    bool is_over_ = false;

    long total() const { return long(task_.rate * (task_.seconds + WARM_S)); }

    Client *open() {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        sockaddr_in address = local(task_.port);
        if (connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) && errno != EINPROGRESS)
            fail("port " + std::to_string(task_.port) + " takes no connection");
        auto made = std::make_unique<Client>(*this, loop_, fd);
        Client *one = made.get();
        open_[one] = std::move(made);
        return one;
    }

    void drop(Client *client) {
        auto found = open_.find(client);
        loop_.bury(std::move(found->second));
        open_.erase(found);
    }

    void error(const std::string &what) {
        if (!found_.errors++) found_.first_error = what.substr(0, 300);
        if (found_.errors > 100 && !is_over_) stop();
    }

    void set_timer(double at) {
        itimerspec when{};
        when.it_value.tv_sec = time_t(at);
        when.it_value.tv_nsec = long((at - double(time_t(at))) * 1e9) + 1;
        timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
    }

    // Requests are sent when they are due, whatever became of those before; latency counts from then.
    void on_tick() {
        if (is_over_ || sent_ >= total()) return stop();  // patience is over
        double due = begun_ + double(sent_) / task_.rate;
        Client *client = idle_.empty() ? open() : idle_.back();
        if (!idle_.empty()) idle_.pop_back();
        client->ask(task_.request, due);
        ++sent_;
        set_timer(sent_ < total() ? begun_ + double(sent_) / task_.rate : now() + PATIENCE_S);
    }

    void stop() {
        if (is_over_) {
            std::string late = std::to_string(open_.size()) + " answers were still coming 5 s after the engine's end";
            if (task_.kind == "flat") found_.errors += long(open_.size());  // of a stream it says how much was queued
            if (found_.first_error.empty()) found_.first_error = late;
            return finish();
        }
        is_over_ = true;
        found_.seconds = now() - counts_from_;
        if (task_.kind == "rate") {
            found_.errors += long(open_.size() - idle_.size());
            if (found_.first_error.empty()) found_.first_error = "answers that did not come within 20 s";
            return finish();
        }
        engine_.end_streams();
        set_timer(now() + (task_.kind == "frames" ? 5 : PATIENCE_S));
    }

    void finish() {
        set_timer(now() + 1e9);
        if (!is_over_) found_.seconds = now() - counts_from_;
        for (auto &one : open_) loop_.bury(std::move(one.second));
        open_.clear();
        idle_.clear();
        is_over_ = false;
        print();
    }

    void print() {
        std::sort(found_.latencies.begin(), found_.latencies.end());
        auto &all = found_.latencies;
        auto part = [&](double share) { return all.empty() ? 0 : 1000 * all[size_t(share * double(all.size() - 1))]; };
        std::string told;
        for (char letter : found_.first_error) told += letter == '"' || letter == '\\' || letter < ' ' ? '\'' : letter;
        std::printf("{\"done\": %ld, \"frames\": %ld, \"errors\": %ld, \"seconds\": %.4f, \"p50_ms\": %.4f, "
                    "\"p99_ms\": %.4f, \"all_requests\": %ld, \"all_frames\": %ld, \"error\": \"%s\"}\n",
                    found_.done, found_.frames, found_.errors, found_.seconds, part(.5), part(.99), engine_.requests, engine_.frames,
                    told.c_str());
        std::fflush(stdout);
    }
};

inline void Client::received(const char *data, size_t size) {
    answer_.feed(data, size, [this](const char *part, size_t length) {
        if (answer_.status() != 200) {
            if (said_.size() < 300) said_.append(part, std::min<size_t>(length, 300));
        } else if (int count = marks(part, length)) {
            load_.framed(number_, count, !is_streaming_);
            is_streaming_ = true;
        }
    });
    if (!answer_.is_done()) return;
    Reader answer = std::move(answer_);
    answer_ = Reader();
    is_asking_ = false;
    tail_.clear();
    number_ = -1;
    is_streaming_ = false;
    load_.answered(this, due_, answer, said_);
}

// How many frames of the engine end in these bytes: each holds [NNNN], the number of its stream.
inline int Client::marks(const char *data, size_t size) {
    tail_.append(data, size);
    int count = 0;
    size_t at = 0, from = 0;
    while ((at = tail_.find('[', from)) != std::string::npos && at + 6 <= tail_.size()) {
        bool is_mark = tail_[at + 5] == ']' && tail_[at + 1] >= '0' && tail_[at + 1] <= '9';
        if (is_mark) {
            ++count;
            if (number_ < 0) number_ = std::atoi(tail_.c_str() + at + 1);
        }
        from = at + (is_mark ? 6 : 1);
    }
    size_t kept = std::max(from, tail_.size() > 5 ? tail_.size() - 5 : 0);
    if (at != std::string::npos) kept = std::max(from, at);
    tail_.erase(0, kept);
    return count;
}

inline void Client::ended() {
    close();
    load_.broke(this, is_asking_);
}
