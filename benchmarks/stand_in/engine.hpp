// The engine: answers that were made beforehand. Knows when to send a frame; what it says comes from files.
#pragma once

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "http.hpp"
#include "loop.hpp"

// What the engine says, from a folder: `whole`, `opening`, `frame`, `ending`, and GET answers by path with _ for /.
struct Script {
    std::string folder, whole, opening, frame, ending;

    explicit Script(const std::string &from) : folder(from) {
        whole = answer("application/json", text("whole"));
        opening = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                  "transfer-encoding: chunked\r\n\r\n" + chunk(text("opening"));
        frame = chunk(text("frame"));
        ending = chunk(text("ending")) + "0\r\n\r\n";
    }

    std::string get(std::string path) const {
        std::replace(path.begin(), path.end(), '/', '_');
        std::ifstream file(folder + "/" + path);
        if (!file) return "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        std::stringstream data;
        data << file.rdbuf();
        return answer("application/json", data.str());
    }

    // The frame with the stream's number in the place of 0000.
    std::string numbered(int number) const {
        char digits[16];
        std::snprintf(digits, sizeof digits, "[%04d]", number);
        std::string made = frame;
        return made.replace(made.find("[0000]"), 6, digits);
    }

  private:
    std::string text(const char *name) const {
        std::ifstream file(folder + "/" + name);
        if (!file) fail(folder + "/" + name + " cannot be read");
        std::stringstream data;
        data << file.rdbuf();
        return data.str();
    }
    static std::string answer(const char *kind, const std::string &body) {
        return std::string("HTTP/1.1 200 OK\r\ncontent-type: ") + kind +
               "\r\ncontent-length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    }
    static std::string chunk(const std::string &data) {
        char size[16];
        std::snprintf(size, sizeof size, "%zx\r\n", data.size());
        return size + data + "\r\n";
    }
};

class Engine;

class Asked : public Socket {  // a connection of a client or a gateway to the engine
  public:
    Asked(Engine &engine, Loop &loop, int fd) : Socket(loop, fd), engine_(engine) {}
    void frames(int count) {
        for (int i = 0; i < count; ++i) send(frame_);
    }
    void finish();

  protected:
    void received(const char *data, size_t size) override;
    void ended() override;
    void writable() override;

  private:
    Engine &engine_;
    Reader request_;
    std::string body_;  // its beginning: pictures are not looked at
    std::string frame_, burst_;
    int number_ = -1;

    void answer();
    void stream();
};

class Engine : public Watched {
  public:
    Script script;
    int window = 1;  // frames of a stream that are on their way at once; 0: as many as TCP takes
    bool is_ending = false;
    long requests = 0, frames = 0;

    Engine(Loop &loop, const std::string &folder, int port) : script(folder), loop_(loop) {
        listener_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        int one = 1;
        setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        sockaddr_in address = local(port);
        if (bind(listener_, reinterpret_cast<sockaddr *>(&address), sizeof address) || listen(listener_, 1024))
            fail("port " + std::to_string(port) + " cannot be listened on");
        loop_.watch(listener_, this, EPOLLIN, true);
    }

    void ready(uint32_t) override {
        int fd;
        while ((fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
            auto made = std::make_unique<Asked>(*this, loop_, fd);
            Asked *one = made.get();
            open_[one] = std::move(made);
        }
    }

    // The client has got `count` frames of this stream, so it may have as many more.
    void arrived(int number, int count) {
        auto found = streams_.find(number);
        frames += count;
        if (window && found != streams_.end()) found->second->frames(count);
    }
    // Those under way, and those that still come.
    void end_streams() {
        is_ending = true;
        auto ending = std::move(streams_);
        streams_.clear();
        for (auto &one : ending) one.second->finish();
    }

    int begin(Asked *stream) {
        last_ = last_ % 9999 + 1;
        streams_[last_] = stream;
        return last_;
    }
    void forget(Asked *asked, int number) {
        streams_.erase(number);
        auto found = open_.find(asked);
        loop_.bury(std::move(found->second));
        open_.erase(found);
    }

  private:
    Loop &loop_;
    int listener_;
    int last_ = 0;
    std::map<Asked *, std::unique_ptr<Asked>> open_;
    std::map<int, Asked *> streams_;
};

inline void Asked::received(const char *data, size_t size) {
    request_.feed(data, size, [this](const char *part, size_t length) {
        if (body_.size() < 4096) body_.append(part, std::min<size_t>(length, 4096));
    });
    if (request_.is_done()) answer();  // nobody here pipelines
}

inline void Asked::answer() {
    Reader request = std::move(request_);
    request_ = Reader();
    size_t space = request.head.find(' ');
    std::string path = request.head.substr(space + 1, request.head.find(' ', space + 1) - space - 1);
    if (request.head[0] == 'G') return send(engine_.script.get(path));
    ++engine_.requests;
    size_t stream_at = body_.find("\"stream\"");
    bool is_stream = stream_at != std::string::npos && body_.find("true", stream_at) < stream_at + 14;
    body_.clear();
    if (is_stream)
        stream();
    else
        send(engine_.script.whole, true);
}

inline void Asked::stream() {
    number_ = engine_.begin(this);
    frame_ = engine_.script.numbered(number_);
    burst_.clear();
    send(engine_.script.opening);
    if (engine_.is_ending) return engine_.end_streams();
    if (engine_.window) return frames(engine_.window);
    while (burst_.size() < 32768) burst_ += frame_;
    writable();
}

inline void Asked::writable() {
    while (number_ >= 0 && !burst_.empty() && !is_blocked()) send(burst_, true);
}

inline void Asked::finish() {
    number_ = -1;
    send(engine_.script.ending);
}

inline void Asked::ended() {
    close();
    engine_.forget(this, number_);
}
