// Engine and clients of benchmarks/overhead.py in one process on one core, so that gateways have the other alone.
//
//     stand_in ENGINE_PORT FOLDER
//
// Reads measurements from its input, a line each, and prints one line of JSON for each:
//     rate PORT REQUESTS_PER_S SECONDS FILE      requests when they are due; FILE holds a whole HTTP request
//     flat PORT CLIENTS SECONDS FILE             each client sends the next when the last is answered
//     frames PORT STREAMS SECONDS FILE WINDOW    frames that arrive, with WINDOW of a stream on their way (0: as TCP takes)

#include "load.hpp"

class Commands : public Watched {
  public:
    Commands(Load &load, Engine &engine) : load_(load), engine_(engine) {}

    void ready(uint32_t) override {
        char buffer[4096];
        ssize_t size = ::read(0, buffer, sizeof buffer);
        if (size <= 0) std::exit(0);
        line_.append(buffer, size_t(size));
        size_t end = line_.find('\n');
        if (end == std::string::npos) return;
        std::istringstream words(line_.substr(0, end));
        line_.erase(0, end + 1);
        Task task{};
        double amount = 0;
        std::string file;
        words >> task.kind >> task.port >> amount >> task.seconds >> file;
        if (task.kind == "frames") words >> engine_.window;
        task.rate = amount;
        task.clients = int(amount);
        std::ifstream from(file);
        if (!words || !from) fail("a command that cannot be read: " + file);
        std::stringstream data;
        data << from.rdbuf();
        task.request = data.str();
        load_.begin(task);
    }

  private:
    Load &load_;
    Engine &engine_;
    std::string line_;
};

int main(int count, char **words) {
    if (count != 3) fail("expected ENGINE_PORT FOLDER");
    signal(SIGPIPE, SIG_IGN);
    Loop loop;
    Engine engine(loop, words[2], std::atoi(words[1]));
    Load load(loop, engine);
    Commands commands(load, engine);
    loop.watch(0, &commands, EPOLLIN, true);
    std::printf("{\"ready\": true}\n");
    std::fflush(stdout);
    loop.run();
}
