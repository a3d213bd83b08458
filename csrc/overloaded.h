// A visitor made of lambdas, for std::visit.
#pragma once

namespace pyllm {

template <class... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <class... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

}  // namespace pyllm
