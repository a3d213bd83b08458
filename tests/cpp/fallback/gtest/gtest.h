// The part of GoogleTest's interface that our tests use, for machines that lack it (no root, no package).
// CMake takes it only when find_package(GTest) fails. No filters, no XML, no death tests.
#pragma once
#include <cmath>
#include <cstdio>
#include <functional>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace testing {

class Message {
 public:
  template <class T>
  Message& operator<<(const T& value) {
    text_ << value;
    return *this;
  }
  std::string str() const { return text_.str(); }

 private:
  std::ostringstream text_;
};

namespace internal {
struct Case {
  std::string name;
  std::function<void()> run;
};
struct State {
  std::vector<Case> cases;
  std::vector<std::string> traces;
  int failures = 0;  // of the running case
};
inline State& state() {
  static State s;
  return s;
}
inline int add_case(std::string name, std::function<void()> run) {
  state().cases.push_back({std::move(name), std::move(run)});
  return 0;
}
template <class T>
std::string show(const T& value) {
  std::ostringstream out;
  if constexpr (std::is_enum_v<T>) out << static_cast<long long>(value);
  else if constexpr (std::is_arithmetic_v<T> || std::is_convertible_v<T, std::string>) out << value;
  else out << "(" << sizeof(T) << " bytes)";
  return out.str();
}

// `Failure(...) = Message() << ...` reports; assignment binds after the streaming, as in GoogleTest.
struct Failure {
  const char* file;
  int line;
  std::string what;
  void operator=(const Message& message) const {
    ++state().failures;
    std::printf("%s:%d: %s %s\n", file, line, what.c_str(), message.str().c_str());
    for (const std::string& trace : state().traces) std::printf("  in %s\n", trace.c_str());
  }
};
struct Trace {
  explicit Trace(const Message& message) { state().traces.push_back(message.str()); }
  explicit Trace(const std::string& text) { state().traces.push_back(text); }
  ~Trace() { state().traces.pop_back(); }
};
template <class A, class B>
std::string compared(const char* a, const char* op, const char* b, const A& x, const B& y) {
  return std::string("expected ") + a + " " + op + " " + b + ", got " + show(x) + " and " + show(y);
}
}  // namespace internal

class Test {
 public:
  virtual ~Test() = default;
  virtual void SetUp() {}
  virtual void TearDown() {}
  virtual void TestBody() = 0;
  static bool HasFailure();
};
inline bool Test::HasFailure() { return internal::state().failures > 0; }
template <class P>
struct TestParamInfo {
  P param;
  size_t index;
};
template <class P>
class TestWithParam : public Test {
 public:
  using ParamType = P;
  const P& GetParam() const { return param_; }
  void set_param(const P& p) { param_ = p; }

 private:
  P param_{};
};

template <class Range>
auto ValuesIn(const Range& range) {
  return std::vector<std::decay_t<decltype(*std::begin(range))>>(std::begin(range), std::end(range));
}
template <class T, class... More>
std::vector<T> Values(T first, More... more) {
  return {first, static_cast<T>(more)...};
}

namespace internal {
template <class Body>
void run_body(Body& body) {
  body.SetUp();
  body.TestBody();
  body.TearDown();
}
// TEST_P bodies and the values of their suite meet when main runs, whichever was registered first.
template <class Suite>
struct Parametrised {
  using P = typename Suite::ParamType;
  static std::vector<std::pair<std::string, std::function<void(const P&)>>>& bodies() {
    static std::vector<std::pair<std::string, std::function<void(const P&)>>> b;
    return b;
  }
  static int add_body(std::string name, std::function<void(const P&)> run) {
    bodies().emplace_back(std::move(name), std::move(run));
    return 0;
  }
  template <class Name>
  static int instantiate(const char* suite, const std::vector<P>& values, Name name) {
    return add_case(suite, [suite, values, name] {
      for (size_t i = 0; i < values.size(); ++i)
        for (auto& body : bodies()) {
          std::printf("  %s.%s/%s\n", suite, body.first.c_str(),
                      std::string(name(TestParamInfo<P>{values[i], i})).c_str());
          body.second(values[i]);
        }
    });
  }
  static int instantiate(const char* suite, const std::vector<P>& values) {
    return instantiate(suite, values, [](const TestParamInfo<P>& info) { return std::to_string(info.index); });
  }
};
}  // namespace internal
}  // namespace testing

#define TESTING_CLASS(suite, name) suite##_##name##_Test
#define TESTING_DEFINE(suite, name, base)          \
  class TESTING_CLASS(suite, name) : public base { \
   public:                                         \
    void TestBody() override;                      \
  };
#define TESTING_PLAIN(suite, name, base)                                                         \
  TESTING_DEFINE(suite, name, base)                                                              \
  static const int suite##_##name##_added = ::testing::internal::add_case(#suite "." #name, [] { \
    TESTING_CLASS(suite, name) body;                                                             \
    ::testing::internal::run_body(body);                                                         \
  });                                                                                            \
  void TESTING_CLASS(suite, name)::TestBody()
#define TEST(suite, name) TESTING_PLAIN(suite, name, ::testing::Test)
#define TEST_F(suite, name) TESTING_PLAIN(suite, name, suite)
#define TEST_P(suite, name)                                                                         \
  TESTING_DEFINE(suite, name, suite)                                                                \
  static const int suite##_##name##_added =                                                         \
      ::testing::internal::Parametrised<suite>::add_body(#name, [](const suite::ParamType& value) { \
        TESTING_CLASS(suite, name) body;                                                            \
        body.set_param(value);                                                                      \
        ::testing::internal::run_body(body);                                                        \
      });                                                                                           \
  void TESTING_CLASS(suite, name)::TestBody()
#define INSTANTIATE_TEST_SUITE_P(prefix, suite, ...) \
  static const int prefix##_##suite##_added = ::testing::internal::Parametrised<suite>::instantiate(#suite, __VA_ARGS__)

#define TESTING_FAILURE(text) ::testing::internal::Failure{__FILE__, __LINE__, text} = ::testing::Message()
#define TESTING_CHECK(ok, text, leave) \
  if (ok)                              \
    ;                                  \
  else leave TESTING_FAILURE(text)
#define TESTING_COMPARE(a, op, b, leave) \
  TESTING_CHECK((a)op(b), ::testing::internal::compared(#a, #op, #b, a, b), leave)
#define EXPECT_TRUE(x) TESTING_CHECK(static_cast<bool>(x), "expected true: " #x, )
#define EXPECT_FALSE(x) TESTING_CHECK(!static_cast<bool>(x), "expected false: " #x, )
#define EXPECT_EQ(a, b) TESTING_COMPARE(a, ==, b, )
#define EXPECT_NE(a, b) TESTING_COMPARE(a, !=, b, )
#define EXPECT_LT(a, b) TESTING_COMPARE(a, <, b, )
#define EXPECT_LE(a, b) TESTING_COMPARE(a, <=, b, )
#define EXPECT_GT(a, b) TESTING_COMPARE(a, >, b, )
#define EXPECT_GE(a, b) TESTING_COMPARE(a, >=, b, )
#define EXPECT_NEAR(a, b, by) \
  TESTING_CHECK(std::fabs((a) - (b)) <= (by), ::testing::internal::compared(#a, "near", #b, a, b), )
#define EXPECT_STREQ(a, b) EXPECT_EQ(std::string(a), std::string(b))
#define ASSERT_TRUE(x) TESTING_CHECK(static_cast<bool>(x), "expected true: " #x, return )
#define ASSERT_FALSE(x) TESTING_CHECK(!static_cast<bool>(x), "expected false: " #x, return )
#define ASSERT_EQ(a, b) TESTING_COMPARE(a, ==, b, return )
#define ASSERT_NE(a, b) TESTING_COMPARE(a, !=, b, return )
#define ASSERT_GT(a, b) TESTING_COMPARE(a, >, b, return )
#define ASSERT_GE(a, b) TESTING_COMPARE(a, >=, b, return )
#define ASSERT_LE(a, b) TESTING_COMPARE(a, <=, b, return )
#define TESTING_THROWS(statement, kind) \
  [&] {                                 \
    try {                               \
      statement;                        \
    } catch (const kind&) {             \
      return true;                      \
    } catch (...) {                     \
    }                                   \
    return false;                       \
  }()
#define EXPECT_THROW(statement, kind) \
  TESTING_CHECK(TESTING_THROWS(statement, kind), "expected " #statement " to throw " #kind, )
#define ASSERT_THROW(statement, kind) \
  TESTING_CHECK(TESTING_THROWS(statement, kind), "expected " #statement " to throw " #kind, return )
#define EXPECT_NO_THROW(statement) EXPECT_FALSE(TESTING_THROWS(statement, std::exception))
#define ADD_FAILURE() TESTING_FAILURE("failure:")
#define FAIL() return TESTING_FAILURE("failure:")
#define SUCCEED() \
  do {            \
  } while (false)
#define TESTING_JOIN2(a, b) a##b
#define TESTING_JOIN(a, b) TESTING_JOIN2(a, b)
#define SCOPED_TRACE(message) \
  const ::testing::internal::Trace TESTING_JOIN(trace_, __LINE__) { message }
