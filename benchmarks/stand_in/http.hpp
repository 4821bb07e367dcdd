// One HTTP/1.1 message, read as its bytes come. Knows heads, lengths and chunks; nothing of what they mean.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <strings.h>

class Reader {
  public:
    std::string head;  // to the empty line, included

    bool is_done() const { return state_ == DONE; }
    bool has_begun() const { return state_ != HEAD || !head.empty(); }
    int status() const { return head.size() > 12 ? std::atoi(head.c_str() + 9) : 0; }

    // What it reads of `data`; less than all of it where another message follows. `body(data, size)` gets the body.
    template <class Body> size_t feed(const char *data, size_t size, Body body) {
        size_t at = 0;
        while (at < size && state_ != DONE) {
            switch (state_) {
            case HEAD:
                at += read_head(data + at, size - at);
                break;
            case SIZE:
                if (data[at] == '\n') {
                    left_ = std::strtoull(line_.c_str(), nullptr, 16);
                    state_ = left_ ? CHUNK : LAST;
                    line_.clear();
                } else {
                    line_ += data[at];
                }
                ++at;
                break;
            case LAST:  // no trailers: what follows the last chunk is CR LF
                if (data[at++] == '\n') state_ = DONE;
                break;
            case GAP:  // CR LF after a chunk
                if (data[at++] == '\n') state_ = SIZE;
                break;
            default: {
                size_t part = std::min(left_, size - at);
                body(data + at, part);
                at += part;
                left_ -= part;
                if (!left_) state_ = state_ == CHUNK ? GAP : DONE;
            }
            }
        }
        return at;
    }

    std::string header(const char *name) const {
        size_t length = std::strlen(name);
        for (size_t at = head.find("\r\n"); at != std::string::npos; at = head.find("\r\n", at + 2)) {
            const char *line = head.c_str() + at + 2;
            if (strncasecmp(line, name, length) == 0 && line[length] == ':') {
                const char *value = line + length + 1;
                while (*value == ' ') ++value;
                return std::string(value, std::strstr(value, "\r\n"));
            }
        }
        return "";
    }

  private:
    enum State { HEAD, LENGTH, SIZE, CHUNK, GAP, LAST, DONE } state_ = HEAD;
    std::string line_;
    size_t left_ = 0;

    size_t read_head(const char *data, size_t size) {
        size_t before = head.size();
        head.append(data, std::min<size_t>(size, 16384));
        size_t end = head.find("\r\n\r\n", before < 3 ? 0 : before - 3);
        if (end == std::string::npos) {
            if (head.size() > 16384) throw std::runtime_error("a head of more than 16 KiB");
            return head.size() - before;
        }
        head.resize(end + 4);
        std::string length = header("content-length");
        left_ = length.empty() ? 0 : std::strtoull(length.c_str(), nullptr, 10);
        bool is_chunked = strncasecmp(header("transfer-encoding").c_str(), "chunked", 7) == 0;
        state_ = is_chunked ? SIZE : left_ ? LENGTH : DONE;
        return head.size() - before;
    }
};
