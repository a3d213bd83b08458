"""Language codes of multilingual tokenizers, their tokens, and the special tokens that say a text's language."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from ..errors import TokenizerError
from .encoding import Template, template
from .settings import Settings

# Order matters: the codes follow the vocabulary, so a code's place here is its token id (fairseq's dictionaries).
_MBART = """
ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP
nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
"""
_MBART50 = """
af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE
ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
"""
_NLLB = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab
ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl
bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn
cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn
est_Latn eus_Latn ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn
gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn
ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab
kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn
kon_Latn kor_Hang kmr_Latn lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn
lua_Latn lug_Latn luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn
mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn
nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn por_Latn prs_Arab pbt_Arab quy_Latn
ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn
sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn
szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn
tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn
vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zul_Latn
"""
_M2M100 = """
af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy
id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru
sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
"""
_WMT21 = """
en ha is ja cs ru zh de
"""
CODES: dict[str, list[str]] = {
    "MBartTokenizer": _MBART.split(),
    "MBart50Tokenizer": _MBART.split() + _MBART50.split(),
    "NllbTokenizer": _NLLB.split(),
    "M2M100Tokenizer": _M2M100.split(),
}
DEFAULT_SOURCE = {
    "MBartTokenizer": "en_XX",
    "MBart50Tokenizer": "en_XX",
    "NllbTokenizer": "eng_Latn",
    "M2M100Tokenizer": "en",
}


def codes_of(settings: Settings) -> list[str]:
    """The language codes a tokenizer class knows by itself; [] for classes without languages. Raises TokenizerError."""
    if settings.class_name == "M2M100Tokenizer":
        name = settings.values.get("language_codes", "m2m100")
        if name not in ("m2m100", "wmt21"):
            raise TokenizerError(
                f"[tokenizer_config.json] language_codes must be m2m100 or wmt21, got {name!r:.60}, correct it"
            )
        return (_M2M100 if name == "m2m100" else _WMT21).split()
    return CODES.get(settings.class_name, [])


def code_token(settings: Settings, code: str) -> str:
    """How the vocabulary spells a language code."""
    return f"__{code}__" if settings.class_name == "M2M100Tokenizer" else code


class Languages:
    """The languages of one tokenizer: codes to token ids, and where those ids go.

    codes: code -> token id. source, target: the defaults, None where there is none. place: "before" or "after" the text
    and its end-of-sequence token `eos`; or "asked", when the language wanted stands before the source text (Marian).
    """

    def __init__(
        self, codes: dict[str, int], source: str | None, target: str | None, place: str = "before", eos: int = 0
    ) -> None:
        self.codes = codes
        self.source = source
        self.target = target
        self._place = place
        self._eos = eos

    def id(self, code: str, where: str) -> int:
        """The token id of a language code. Raises TokenizerError naming it, the nearest one and some of the rest."""
        return lookup(self.codes, code, where)

    def choose(self, plain: Template, src_lang: str | None, tgt_lang: str | None, target: bool) -> Template:
        """What stands around a text of these languages. plain: the template without one. Raises TokenizerError."""
        for name, code in (("src_lang", src_lang), ("tgt_lang", tgt_lang)):
            if code is not None:
                self.id(code, name)
        if self._place == "asked":
            return self._template(tgt_lang) if tgt_lang is not None and not target else plain
        wanted = (tgt_lang or self.target) if target else (src_lang or self.source)
        if wanted is None:
            name = "tgt_lang" if target else "src_lang"
            raise TokenizerError(f"[encode] {name} says which language the text is in, got none, pass {name}=")
        return self._template(wanted)

    def _template(self, code: str) -> Template:
        language, eos = self.codes[code], self._eos
        if self._place == "after":
            return template(["A", eos, language], ["A", "B", eos, language])
        return template([language, "A", eos], [language, "A", "B", eos])

    def first_token(self, tgt_lang: str | None) -> int | None:
        """The token that a translation begins with. Raises TokenizerError for an unknown or missing language."""
        code = tgt_lang or self.target
        if self._place == "asked":
            if tgt_lang is not None:
                self.id(tgt_lang, "tgt_lang")
            return None
        if code is None:
            raise TokenizerError(
                "[forced_bos_token_id] tgt_lang says which language to translate into, got none, pass tgt_lang="
            )
        return self.id(code, "tgt_lang")


def lookup(codes: dict[str, int], code: str, where: str) -> int:
    """codes[code]. Raises TokenizerError naming the code, the nearest ones and some of the rest."""
    if isinstance(code, str) and code in codes:
        return codes[code]
    if not codes:
        raise TokenizerError(f"[{where}] this tokenizer has no language codes, got {code!r:.40}, leave it out")
    begins = [known for known in codes if known[:2].lower() == str(code)[:2].lower()]
    near = difflib.get_close_matches(str(code)[:40], begins or codes, 1, 0)
    some = ", ".join(sorted(codes)[:8])
    more = f" and {len(codes) - 8} more" if len(codes) > 8 else ""
    hint = f"use {near[0]} perhaps" if near else "use one of them"
    raise TokenizerError(f"[{where}] language codes are {some}{more}, got {code!r:.40}, {hint}")


def _own_codes(settings: Settings) -> list[str]:
    """The additional special tokens that are spelled like the class's language codes."""
    if settings.class_name == "M2M100Tokenizer":
        return [content[2:-2] for content in settings.extra if re.fullmatch("__[a-z]+__", content)]
    return [content for content in settings.extra if re.fullmatch("[a-z]{2,3}_[A-Za-z]{2,4}", content)]


def read_languages(settings: Settings, token_to_id: Callable[[str], int | None], eos: int | None) -> Languages | None:
    """The languages of a tokenizer of mBART, mBART-50, NLLB or M2M100; None for others. Raises TokenizerError.

    A folder's own additional_special_tokens count as languages where they look like the class's codes.
    """
    known = codes_of(settings)
    if not known or eos is None:
        return None
    codes = {}
    for code in dict.fromkeys([*known, *_own_codes(settings)]):
        id = token_to_id(code_token(settings, code))
        if id is not None:
            codes[code] = id
    source = settings.text("src_lang") or DEFAULT_SOURCE[settings.class_name]
    target = settings.text("tgt_lang")
    for key in ("src_lang", "tgt_lang"):
        if (given := settings.text(key)) is not None:
            lookup(codes, given, f"tokenizer_config.json, {key}")
    after = settings.class_name == "MBartTokenizer" or settings.flag("legacy_behaviour", False)
    place = "after" if after else "before"
    return Languages(codes, source if source in codes else None, target, place, eos)
