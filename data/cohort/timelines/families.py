"""Families of codes and what drives them: part of the frozen exam, see exam.py.

Heart failure, its drugs and its laboratory tests follow the heart's size; airway disease follows emphysema; and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

COMMON, RARE, NOISE = (0.009, 0.10), (0.004, 0.04), (0.0006, 0.012)  # log-uniform events per year of one leaf
LAB_PER_YEAR, ROUTINE_PER_YEAR = (0.05, 0.35), (0.25, 1.1)
JITTER = (0.75, 1.25)  # of the family's weights, per stem


@dataclass(frozen=True)
class Family:
    """Codes that share drivers. A stem becomes a node of the tree, its variants the leaves that timelines hold."""

    name: str
    weights: dict[str, float]  # of the log-hazard, per standardised latent
    disorders: tuple[str, ...] = ()
    drugs: tuple[str, ...] = ()
    labs: tuple[str, ...] = ()
    procedures: tuple[str, ...] = ()
    per_year: tuple[float, float] = COMMON  # of disorders, drugs and procedures
    sensitivity: float = 0.0  # P(a disorder is coded in the CT's own visit | present)


# fmt: off
VISIBLE_FAMILIES = (
    Family(
        "heart failure", {"heart_size": 1.05, "effusion": 0.45, "age": 0.1},
        disorders=("Heart failure", "Cardiomyopathy", "Reduced ejection fraction", "Cardiac decompensation",
            "Mitral regurgitation"),
        drugs=("furosemide", "bumetanide", "spironolactone", "carvedilol", "sacubitril", "torasemide"),
        labs=("Natriuretic peptide B", "Sodium in serum"),
        procedures=("Echocardiography", "Implantable defibrillator", "Cardiac resynchronisation"),
        sensitivity=0.45,
    ),
    Family(
        "coronary disease", {"calcium": 1.1, "age": 0.15, "metabolic": 0.2},
        disorders=("Myocardial infarction", "Angina pectoris", "Coronary arteriosclerosis",
            "Ischaemic cardiomyopathy", "Peripheral artery disease"),
        drugs=("atorvastatin", "rosuvastatin", "clopidogrel", "ezetimibe", "metoprolol", "nitroglycerin"),
        labs=("Troponin I", "LDL cholesterol"),
        procedures=("Coronary angiography", "Percutaneous coronary intervention", "Bypass graft"),
        sensitivity=0.4,
    ),
    Family(
        "obstructive lung disease", {"emphysema": 1.15, "immune": 0.15},
        disorders=("Chronic obstructive pulmonary disease", "Acute exacerbation of airway disease", "Emphysema",
            "Bronchitis", "Nicotine dependence"),
        drugs=("tiotropium", "salbutamol", "budesonide", "roflumilast", "prednisone", "ipratropium"),
        labs=("Carbon dioxide in arterial blood", "Bicarbonate"),
        procedures=("Spirometry", "Pulmonary rehabilitation", "Lung volume reduction"),
        sensitivity=0.5,
    ),
    Family(
        "lung infection and fibrosis", {"lung_opacity": 1.1, "emphysema": 0.2, "immune": 0.3},
        disorders=("Pneumonia", "Interstitial pneumonitis", "Pulmonary fibrosis", "Aspiration pneumonitis",
            "Bronchiectasis"),
        drugs=("ceftriaxone", "azithromycin", "piperacillin", "nintedanib", "levofloxacin", "doxycycline"),
        labs=("Procalcitonin", "C reactive protein"),
        procedures=("Bronchoscopy", "Sputum culture", "Diffusing capacity"),
        sensitivity=0.4,
    ),
    Family(
        "fatty liver and diabetes", {"liver_fat": 1.15, "metabolic": 0.25},
        disorders=("Hepatic steatosis", "Type 2 diabetes", "Obesity", "Metabolic syndrome", "Steatohepatitis"),
        drugs=("metformin", "semaglutide", "insulin glargine", "empagliflozin", "pioglitazone", "glipizide"),
        labs=("Alanine aminotransferase", "Haemoglobin A1c"),
        procedures=("Liver elastography", "Dietary counselling", "Retinal screening"),
        sensitivity=0.35,
    ),
    Family(
        "frailty", {"muscle": -1.15, "age": 0.2},
        disorders=("Fall", "Sarcopenia", "Malnutrition", "Pressure ulcer", "Gait abnormality"),
        drugs=("oral nutritional supplement", "vitamin D", "megestrol", "thiamine", "mirtazapine", "zinc"),
        labs=("Albumin", "Prealbumin"),
        procedures=("Physical therapy", "Nursing home assessment", "Feeding tube"),
        sensitivity=0.3,
    ),
    Family(
        "right heart failure", {"rv_lv": 1.2, "clotting": 0.2},
        disorders=("Right ventricular failure", "Tricuspid regurgitation", "Deep vein thrombosis",
            "Hepatic congestion", "Syncope"),
        drugs=("apixaban", "rivaroxaban", "enoxaparin", "warfarin", "dobutamine", "heparin"),
        labs=("D-dimer", "Lactate"),
        procedures=("Venous duplex", "Thrombolysis", "Vena cava filter"),
        sensitivity=0.45,
    ),
    Family(
        "pulmonary vascular disease", {"pulmonary_artery": 1.15, "rv_lv": 0.35},
        disorders=("Pulmonary vascular disorder", "Hypoxaemia", "Sleep apnoea", "Systemic sclerosis",
            "Exertional dyspnoea"),
        drugs=("sildenafil", "bosentan", "treprostinil", "macitentan", "riociguat", "acetazolamide"),
        labs=("Oxygen saturation", "Uric acid"),
        procedures=("Right heart catheterisation", "Ventilation perfusion scan", "Six minute walk"),
        sensitivity=0.4,
    ),
    Family(
        "lung cancer", {"nodule": 1.15, "age": 0.1},
        disorders=("Malignant neoplasm of lung", "Solitary pulmonary nodule", "Secondary malignant neoplasm",
            "Haemoptysis", "Neutropenia"),
        drugs=("carboplatin", "pembrolizumab", "paclitaxel", "pemetrexed", "ondansetron", "filgrastim"),
        labs=("Carcinoembryonic antigen", "Neutrophil count"),
        procedures=("Lung biopsy", "Positron emission tomography", "Radiotherapy"),
        sensitivity=0.55,
    ),
    Family(
        "pleural disease", {"effusion": 1.2, "heart_size": 0.15},
        disorders=("Pleurisy", "Empyema", "Hypoalbuminaemia", "Ascites", "Dyspnoea at rest"),
        drugs=("metolazone", "albumin infusion", "alteplase", "colchicine", "indapamide", "morphine"),
        labs=("Protein in pleural fluid", "Lactate dehydrogenase"),
        procedures=("Thoracentesis", "Chest tube insertion", "Pleurodesis"),
        sensitivity=0.45,
    ),
    Family(
        "atrial fibrillation", {"heart_size": 0.75, "pulmonary_artery": 0.45, "age": 0.25},
        disorders=("Atrial fibrillation", "Atrial flutter", "Palpitations", "Sick sinus syndrome", "Embolic stroke"),
        drugs=("amiodarone", "diltiazem", "digoxin", "sotalol", "flecainide", "dabigatran"),
        labs=("International normalised ratio", "Thyrotropin"),
        procedures=("Cardioversion", "Catheter ablation", "Pacemaker insertion"),
        sensitivity=0.35,
    ),
    Family(
        "respiratory failure", {"emphysema": 0.6, "lung_opacity": 0.55, "effusion": 0.5, "muscle": -0.4},
        disorders=("Respiratory failure", "Hypercapnia", "Oxygen dependence", "Tracheostomy status", "Delirium"),
        drugs=("oxygen", "propofol", "norepinephrine", "fentanyl", "dexmedetomidine", "vancomycin"),
        labs=("Blood gas panel", "Base excess"),
        procedures=("Mechanical ventilation", "Intubation", "Non-invasive ventilation"),
        sensitivity=0.45,
    ),
    Family(
        "osteoporosis", {"bone_density": -1.2, "female": 0.3, "age": 0.15},
        disorders=("Osteoporosis", "Vertebral compression fracture", "Hip fracture", "Wrist fracture", "Kyphosis"),
        drugs=("alendronate", "denosumab", "teriparatide", "calcium carbonate", "zoledronate", "calcitonin"),
        labs=("Alkaline phosphatase", "Vitamin D in serum"),
        procedures=("Bone densitometry", "Kyphoplasty", "Spinal bracing"),
        sensitivity=0.3,
    ),
    Family(
        "large spleen", {"spleen_size": 1.2},
        disorders=("Splenomegaly", "Thrombocytopenia", "Lymphoma", "Myelofibrosis", "Portal hypertension"),
        drugs=("hydroxyurea", "ruxolitinib", "rituximab", "eltrombopag", "propranolol", "folic acid"),
        labs=("Platelet count", "Reticulocytes"),
        procedures=("Bone marrow biopsy", "Platelet transfusion", "Abdominal ultrasound"),
        sensitivity=0.35,
    ),
)
# Driven by what no image shows, by age and by sex.
UNSEEN_FAMILIES = (
    Family(
        "kidney disease", {"renal": 1.1, "age": 0.2},
        disorders=("Chronic kidney disease", "Hyperkalaemia", "Anaemia of kidney disease", "Nephrotic syndrome"),
        drugs=("sevelamer", "epoetin", "calcitriol", "patiromer"),
        labs=("Creatinine", "Potassium"),
        procedures=("Haemodialysis", "Fistula creation"),
        per_year=RARE,
    ),
    Family(
        "infection", {"immune": 1.1},
        disorders=("Sepsis", "Urinary tract infection", "Cellulitis", "Herpes zoster"),
        drugs=("meropenem", "cefazolin", "fluconazole", "acyclovir"),
        labs=("Leukocytes", "Blood culture"),
        procedures=("Abscess drainage", "Central line"),
        per_year=RARE,
    ),
    Family(
        "coagulation", {"clotting": 1.1},
        disorders=("Thrombophilia", "Phlebitis", "Antiphospholipid syndrome", "Postthrombotic syndrome"),
        drugs=("fondaparinux", "dalteparin", "aspirin", "ticagrelor"),
        labs=("Antithrombin", "Fibrinogen"),
        procedures=("Compression therapy", "Vein ablation"),
        per_year=RARE,
    ),
    Family(
        "mental health", {"mood": 1.1, "female": 0.2},
        disorders=("Major depression", "Anxiety disorder", "Insomnia", "Chronic pain"),
        drugs=("sertraline", "trazodone", "lorazepam", "gabapentin"),
        labs=("Lithium level", "Drug screen"),
        procedures=("Psychotherapy", "Nerve block"),
        per_year=RARE,
    ),
    Family(
        "missed care", {"adherence": 1.1},
        disorders=("Non-adherence", "Housing problem", "Alcohol use", "Missed appointment"),
        drugs=("naltrexone", "nicotine patch", "methadone", "disulfiram"),
        labs=("Ethanol level", "Ammonia"),
        procedures=("Social work visit", "Home visit"),
        per_year=RARE,
    ),
    Family(
        "endocrine", {"metabolic": 1.1, "age": 0.1},
        disorders=("Hypothyroidism", "Gout", "Hypertriglyceridaemia", "Hypoglycaemia"),
        drugs=("levothyroxine", "allopurinol", "fenofibrate", "methimazole"),
        labs=("Free thyroxine", "Triglycerides"),
        procedures=("Thyroid biopsy", "Insulin pump"),
        per_year=RARE,
    ),
    Family(
        "old age", {"age": 0.8},
        disorders=("Cataract", "Dementia", "Presbycusis", "Osteoarthritis"),
        drugs=("donepezil", "latanoprost", "memantine", "celecoxib"),
        procedures=("Cataract surgery", "Joint replacement"),
        per_year=RARE,
    ),
    Family(
        "sex", {"female": 0.9, "age": -0.2},
        disorders=("Migraine", "Breast lump", "Iron deficiency", "Pelvic pain"),
        drugs=("sumatriptan", "estradiol", "ferrous sulfate", "tamoxifen"),
        procedures=("Mammography", "Hysteroscopy"),
        per_year=RARE,
    ),
)
BODY_PARTS = ("skin", "eye", "ear", "tooth", "knee", "shoulder", "hand", "foot", "colon", "bladder", "nose")
AILMENTS = ("inflammation", "injury", "neoplasm", "infection", "pain", "malformation", "ulcer", "degeneration")
ROUTINE_LABS = (
    "Haemoglobin", "Glucose", "Urea", "Chloride", "Calcium", "Bilirubin", "Magnesium", "Phosphate", "Heart rate",
    "Blood pressure", "Body weight", "Body temperature", "Respiratory rate", "Pain score",
)
# fmt: on
NOISE_FAMILIES = tuple(
    Family(
        part,
        {},
        disorders=tuple(f"{part.capitalize()} {ailment}" for ailment in AILMENTS),
        drugs=tuple(f"{part} agent {letter}" for letter in "abcdef"),
        procedures=(f"{part.capitalize()} repair", f"{part.capitalize()} inspection"),
        per_year=NOISE,
    )
    for part in BODY_PARTS
)
FAMILIES = (*VISIBLE_FAMILIES, *UNSEEN_FAMILIES, *NOISE_FAMILIES)

# Leaves of a stem, most common first; small cohorts keep a prefix.
VARIANTS = {
    "disorder": ("acute", "chronic", "recurrent", "unspecified", "with complication", "severe"),
    "icd": ("unspecified", "with complication", "sequela"),
    "drug": ("5 MG", "10 MG", "20 MG", "injection"),
    "lab": ("level", "high", "panel"),
    "procedure": ("initial", "repeat", "guided"),
}
